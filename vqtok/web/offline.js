// Keeps the page and the model in the browser's cache, so that it opens without a network.
// Another model or version has another name of its cache.

const NAME = "/*NAME*/";
const FILES = /*FILES*/;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(["./", ...FILES])));
});

self.addEventListener("activate", (event) => {
  const old = (names) => names.filter((name) => name.startsWith("vqtok-") && name !== NAME);
  event.waitUntil(caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name)))));
});

self.addEventListener("fetch", (event) => {
  event.respondWith(caches.match(event.request, { cacheName: NAME }).then((found) => found ?? fetch(event.request)));
});
