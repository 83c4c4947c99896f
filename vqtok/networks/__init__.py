"""Encoders and decoders: the VQ-VAE's, the VQGAN's, the VAE's, and large images."""
