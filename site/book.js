// Sliders, choices and play buttons of the book, and its list of contents.
// A plain script, not a module: browsers refuse modules to pages opened from disk.
"use strict";

function widget(figure) {
  const frames = JSON.parse(figure.querySelector("script").textContent);
  const [image, label, button] = ["img", ".label", "button"].map((part) => figure.querySelector(part));
  const controls = [...figure.querySelectorAll("[data-stride]")];
  const slider = figure.querySelector("input");
  let timer = 0;

  function show() {
    const place = controls.reduce((sum, control) => sum + control.value * control.dataset.stride, 0);
    [image.src, label.innerHTML, image.alt] = frames[place];
    // Screen readers announce "t = 375 …", not the number of the frame.
    slider?.setAttribute("aria-valuetext", label.textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  }

  function step() {
    slider.stepUp();
    show();
    if (slider.value === slider.max) stop();
  }

  function play() {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    show();
    timer = setInterval(step, Math.max(50, Math.min(400, 6000 / frames.length)));
  }

  // All frames are fetched when it becomes likely that they will be seen.
  function fetchAll() {
    for (const [source] of frames) new Image().src = source;
  }

  for (const event of ["pointerenter", "focusin"]) figure.addEventListener(event, fetchAll, { once: true });
  for (const control of controls) control.addEventListener("input", () => (timer && stop(), show()));
  button?.addEventListener("click", play);
  figure.querySelector(".controls").hidden = false;
  show();
}

document.querySelectorAll("figure.frames").forEach(widget);

// Beside the text there is room for the contents; above it, they open on request.
const contents = document.querySelector("nav details");
contents.open = matchMedia("(min-width: 70rem)").matches;

// What scrolls sideways can be reached with the Tab key.
for (const box of document.querySelectorAll("pre, .scroll, .formula"))
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
