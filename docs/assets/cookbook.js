// The address after `curl -O`, the buttons that copy a whole file, and scrolling without a mouse.
"use strict";

for (const line of document.querySelectorAll("[data-curl]"))
  line.textContent = `curl -O ${new URL(line.dataset.curl, location)}`;

async function copyFile(address) {
  const text = fetch(address).then((reply) => {
    if (!reply.ok) throw new Error(`${address}: ${reply.status}`);
    return reply.text();
  });
  if (navigator.clipboard) {  // given a promise, because some browsers ask for a click just before
    const blob = text.then((value) => new Blob([value], { type: "text/plain" }));
    return navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })]);
  }
  const area = document.createElement("textarea");  // http:// on another host has no clipboard
  area.value = await text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy-file]");
  if (!button) return;
  const label = button.dataset.label ??= button.textContent;
  try {
    await copyFile(button.dataset.copyFile);
    button.textContent = "Copied";
  } catch (error) {
    button.textContent = "Not copied: download it";
  }
  setTimeout(() => { button.textContent = label; }, 3000);
});

const SCROLLS = ".md-typeset__scrollwrap, .md-typeset pre, .md-typeset pre > code, .highlight-ipynb, "
  + ".jp-OutputArea-output, .jp-RenderedText, .mermaid";

function reachable() {
  for (const box of document.querySelectorAll(SCROLLS))
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
}

addEventListener("load", () => setTimeout(reachable, 100));  // the theme wraps the tables first
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true);
