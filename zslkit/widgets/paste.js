// A field that takes an image from the clipboard: ipywidgets has none.
const HINT = "Click here, then paste an image (Ctrl+V).";
const LARGE = 4e6; // bytes: Jupyter drops messages above 10 MB
const SIDE = 1600; // pixels of a reduced image

async function reduced(file) {
  if (file.size <= LARGE) return file;
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(bitmap.width * scale, bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

function render({ model, el }) {
  const field = document.createElement("textarea");
  field.rows = 2;
  field.placeholder = HINT;
  field.setAttribute("aria-label", "paste an image");
  field.style.cssText = `box-sizing: border-box; width: 97%; max-width: 460px; resize: none;
    color: var(--jp-ui-font-color1, currentColor); border: 1px dashed currentColor;
    background: var(--jp-input-background, transparent)`;
  el.dataset.lmSuppressShortcuts = "true"; // else JupyterLab pastes a cell
  field.oninput = () => { field.value = ""; };
  field.onpaste = async (event) => {
    event.preventDefault();
    const items = [...event.clipboardData.items].filter((item) => item.kind === "file");
    const file = items.find((item) => item.type.startsWith("image/"))?.getAsFile();
    try {
      if (!file) throw new Error("The clipboard holds no image.");
      const small = await reduced(file);
      model.set("value", new DataView(await small.arrayBuffer()));
      model.save_changes();
      field.placeholder = HINT;
    } catch (error) {
      field.placeholder = `${error.message} ${HINT}`;
    }
  };
  el.append(field);
}

export default { render };
