"""Names that an option may take, each with the path of what makes it: no module is imported
before it is needed, so that `--help` starts without PyTorch.
"""

# What `vqtok export --to` writes; each function is called as `interop.export.Exporter` says.
EXPORT_FORMATS = {
    "diffusers": "vqtok.interop.diffusers:to_vqmodel",
}
