// A button that interrupts the kernel. A busy one reads no message of a widget, so this asks the
// server, as JupyterLab's own stop button does.
const ELSEWHERE = "Use the stop button of the notebook's toolbar: it does the same.";

async function interrupt(kernel) {
  const page = document.getElementById("jupyter-config-data");
  if (!page || !kernel) return ELSEWHERE; // no JupyterLab
  const { baseUrl, token } = JSON.parse(page.textContent);
  const xsrf = document.cookie.match(/\b_xsrf=([^;]*)/);
  const headers = {};
  if (xsrf) headers["X-XSRFToken"] = xsrf[1];
  if (token) headers.Authorization = `token ${token}`;
  const answer = await fetch(`${baseUrl}api/kernels/${kernel}/interrupt`, { method: "POST", headers });
  return answer.ok ? "Stopping after this step; the run will be saved." : ELSEWHERE;
}

function render({ model, el }) {
  const button = document.createElement("button");
  const words = document.createElement("span");
  el.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes the Enter key
  el.classList.add("zslkit");
  button.className = "jupyter-button widget-button";
  button.textContent = "stop and save";
  words.setAttribute("role", "alert");
  const follow = () => { button.disabled = model.get("over"); };
  button.onclick = async () => {
    button.disabled = true; // a second interrupt would stop at once, without saving
    words.textContent = await interrupt(model.get("kernel")).catch(() => ELSEWHERE);
  };
  model.on("change:over", follow);
  follow();
  el.append(button, words);
}

export default { render };
