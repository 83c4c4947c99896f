"use strict";
// Sliders that uncover one image under another, and the codes of a codebook one at a time. All data is in the page.
document.documentElement.classList.add("live");

for (const box of document.querySelectorAll(".compare")) {
  const pairs = [...box.querySelectorAll(".pair")];
  const wipe = box.querySelector(".wipe");
  const choose = box.querySelector(".choose");
  const name = box.querySelector(".name");
  for (const image of box.querySelectorAll("img[data-first]")) {
    image.src = pairs[0].querySelector(".before").src;      // stored once
  }
  const show = () => {
    const chosen = choose ? Number(choose.value) : 0;
    pairs.forEach((pair, i) => { pair.hidden = i !== chosen; });
    pairs[chosen].querySelector(".after").style.clipPath = `inset(0 0 0 ${100 - wipe.value}%)`;
    name.textContent = pairs[chosen].dataset.name;
    if (choose) choose.setAttribute("aria-valuetext", pairs[chosen].dataset.name);
    wipe.setAttribute("aria-valuetext", `${wipe.value} percent decoded`);
  };
  wipe.addEventListener("input", show);
  if (choose) choose.addEventListener("input", show);
  show();
}

for (const box of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(box.querySelector("script.codebook").textContent);
  const atlas = box.querySelector("img.atlas");
  const [slider, field] = ["range", "number"].map((type) => box.querySelector(`input[type=${type}]`));
  const canvas = box.querySelector("canvas");
  const told = box.querySelector("output");
  const place = new Map(data.order.map((code, i) => [code, i]));
  const draw = (code, x, side) => {
    const i = place.get(code);
    const scale = atlas.naturalWidth / (data.columns * data.side);
    const size = data.side * scale;
    const [column, row] = [i % data.columns, Math.floor(i / data.columns)];
    canvas.getContext("2d").drawImage(atlas, column * size, row * size, size, size, x, 0, side, side);
  };
  const show = (code) => {
    slider.value = field.value = code;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    draw(code, 0, 96);
    data.near[code].forEach((other, i) => draw(other, 120 + 72 * i, 64));
    const near = data.near[code].map((other, i) => `${other} (${data.distances[code][i]})`).join(", ");
    const text = `Code ${code}: ${data.used[code]}. Nearest codes, with their distances: ${near}.`;
    told.textContent = text;
    canvas.setAttribute("aria-label", text);
    slider.setAttribute("aria-valuetext", `code ${code}`);
  };
  const take = (event) => {
    const code = Math.round(Number(event.target.value));
    if (data.near[code]) show(code);
  };
  slider.addEventListener("input", take);
  field.addEventListener("input", take);
  atlas.addEventListener("click", (event) => {
    const box = atlas.getBoundingClientRect();
    const rows = Math.ceil(data.order.length / data.columns);
    const column = Math.floor((event.clientX - box.left) / box.width * data.columns);
    const row = Math.floor((event.clientY - box.top) / box.height * rows);
    const code = data.order[row * data.columns + column];
    if (code !== undefined) show(code);
  });
  atlas.decode().then(() => show(data.order[0]), () => {});
}
