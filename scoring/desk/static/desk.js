"use strict";
// Keys for the buttons that carry data-key, and the slider that replays by itself. The pages work without this file.
document.documentElement.classList.add("scripted");

const typing = (element) =>
  element.matches("textarea, select, input:not([type=radio]):not([type=checkbox]):not([type=hidden])");

function turn(fieldset) {
  const choices = [...fieldset.querySelectorAll("input[type=radio]")];
  const now = choices.findIndex((choice) => choice.checked);
  const said = choices.findIndex((choice) => "said" in choice.dataset);
  // first what the model said, then the others, then nothing again
  const order = [choices.length - 1, said, ...choices.keys()].filter((n, i, all) => n >= 0 && all.indexOf(n) === i);
  const next = choices[order[(order.indexOf(now) + 1) % order.length]];
  next.checked = true;
  next.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || typing(event.target)) return;
  const key = event.key.toLowerCase();
  const question = document.querySelector(`fieldset[data-question="${CSS.escape(key)}"]`);
  if (question) {
    turn(question);
  } else if (key === "y") {
    document.querySelectorAll("input[data-said]").forEach((choice) => { choice.checked = true; });
  } else {
    const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!target) return;
    target.click();
  }
  event.preventDefault();
});

// a form is sent once, also where its button is pressed twice
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => {
  document.querySelectorAll("form").forEach((form) => { delete form.dataset.sent; });
});

const slider = document.querySelector("#precision");
if (slider) {
  const output = document.querySelector("output[for=precision]");
  slider.addEventListener("input", () => { output.textContent = `${slider.value} %`; });
  slider.addEventListener("change", () => slider.form.requestSubmit());
}
