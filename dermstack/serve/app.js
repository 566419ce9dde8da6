// Adds previews, drag and drop, a site and a unit for each image, and answers without a reload; the form also works without it.
"use strict";
const form = document.getElementById("form");
const input = document.getElementById("pictures"); // absent where no model takes images
const drop = document.getElementById("drop");
const list = document.getElementById("chosen");
const tooMuch = document.getElementById("too-much");
const site = document.getElementById("site");
const working = document.getElementById("working");
const read = document.getElementById("read");
const unit = document.getElementById("unit");
let chosen = []; // { file, site, unit, url }

function add(files) {
  for (const file of files) {
    const known = chosen.some((one) => one.file.name === file.name && one.file.size === file.size && one.file.lastModified === file.lastModified);
    if (!known) chosen.push({ file, site: "", unit: "", url: URL.createObjectURL(file) });
  }
  show();
}

function remove(one) {
  URL.revokeObjectURL(one.url);
  chosen = chosen.filter((other) => other !== one);
  show();
  (list.querySelector("button") || input).focus();
}

function row(one) {
  const item = document.createElement("li");
  const image = document.createElement("img");
  image.alt = "";
  image.src = one.url;
  image.addEventListener("error", () => {
    const none = document.createElement("span");
    none.className = "none";
    image.replaceWith(none);
  });
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = name.title = one.file.name;
  item.append(image, name);
  if (site) {
    const own = site.cloneNode(true);
    own.removeAttribute("id");
    own.removeAttribute("aria-describedby");
    own.name = "site_of";
    own.setAttribute("aria-label", `Site of ${one.file.name}`);
    own.options[0].textContent = "site as below";
    for (const option of own.options) option.defaultSelected = false;
    own.value = one.site;
    own.addEventListener("change", () => { one.site = own.value; });
    item.append(own);
  }
  if (unit) {
    const own = document.createElement("input");
    own.type = "text";
    own.name = "unit_of";
    own.maxLength = unit.maxLength;
    own.placeholder = unit.labels[0].textContent;
    own.setAttribute("aria-label", `${unit.labels[0].textContent} of ${one.file.name}`);
    own.value = one.unit;
    own.addEventListener("input", () => { one.unit = own.value; });
    item.append(own);
  }
  const away = document.createElement("button");
  away.type = "button";
  away.textContent = "Remove";
  away.setAttribute("aria-label", `Remove ${one.file.name}`);
  away.addEventListener("click", () => remove(one));
  item.append(away);
  return item;
}

function show() {
  const files = new DataTransfer();
  for (const one of chosen) files.items.add(one.file);
  input.files = files.files;
  list.replaceChildren(...chosen.map(row));
  list.hidden = !chosen.length;
  for (const id of ["site-each", "unit-each"]) {
    const each = document.getElementById(id);
    if (each) each.hidden = !chosen.length;
  }
  const bytes = chosen.reduce((sum, one) => sum + one.file.size, 0);
  const faults = [];
  const { mostPictures, mostBytes } = form.dataset;
  if (chosen.length > Number(mostPictures)) faults.push(`${chosen.length} images are more than the limit of ${mostPictures}.`);
  if (bytes > Number(mostBytes)) faults.push(`${Math.ceil(bytes / 2 ** 20)} MiB are more than the limit of ${mostBytes / 2 ** 20}.`);
  tooMuch.textContent = faults.length ? `${faults.join(" ")} Remove some.` : "";
  tooMuch.hidden = !faults.length;
  read.disabled = Boolean(faults.length);
}

if (input) {
  input.addEventListener("change", () => add(input.files));
  // A file dropped outside the frame must not replace the page.
  for (const kind of ["dragenter", "dragover"]) {
    window.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer) add(event.dataTransfer.files);
  });
}
// Only the answer is replaced, so that the images stay selected for the next request.
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  working.textContent = input ? `Scoring ${chosen.length} ${chosen.length === 1 ? "image" : "images"} …` : "Predicting …";
  read.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const answer = page.getElementById("answer");
    if (!answer) throw new Error(`status ${response.status}`); // the answer of something else
    document.getElementById("answer").replaceWith(answer);
    document.title = page.title;
    working.textContent = "";
    answer.focus();
  } catch {
    working.textContent = "No answer: check that `dermstack app` is still running, then send the form again.";
  } finally {
    read.disabled = false;
  }
});
