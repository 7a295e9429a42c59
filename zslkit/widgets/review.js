// Decisions by key: a field that has the focus, and one for other words.
const WORDS = { k: "keep", d: "drop", s: "swap", u: "undo", ArrowLeft: "back", ArrowRight: "on" };

function render({ model, el }) {
  const keys = document.createElement("div");
  keys.tabIndex = 0;
  keys.setAttribute("role", "group");
  keys.setAttribute("aria-label", "decide by key");
  keys.textContent = "Click here, then: k keep, d drop, s swap, e edit, u undo, ← → walk.";
  keys.style.cssText = `padding: 6px; border: 1px dashed currentColor; max-width: 620px;
    color: var(--jp-ui-font-color1, currentColor)`;
  const field = document.createElement("input");
  field.setAttribute("aria-label", "other words for the caption");
  field.style.cssText = `box-sizing: border-box; width: 97%; max-width: 620px; margin-top: 4px;
    color: var(--jp-ui-font-color1, currentColor); border: 1px solid currentColor;
    background: var(--jp-input-background, transparent)`;
  el.dataset.lmSuppressShortcuts = "true"; // else "dd" deletes the cell
  const refill = () => { field.value = model.get("caption"); };
  model.on("change:caption", refill);
  refill();
  keys.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "e") field.focus();
    else if (WORDS[event.key]) model.send({ word: WORDS[event.key] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  field.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key === "Escape") refill();
    else if (event.key === "Enter") model.send({ word: "edit", text: field.value });
    else return;
    keys.focus();
  };
  el.append(keys, field);
}

export default { render };
