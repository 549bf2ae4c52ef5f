// The terminal: xterm.js at one end of a WebSocket, a shell in a node at the other.
"use strict";

(() => {
  const place = document.getElementById("terminal");
  if (!place || !window.Terminal) return;
  const state = document.getElementById("terminal-state");
  const again = document.getElementById("terminal-again");

  // xterm.js writes its styles into the page, which this page's policy forbids, and rightly. Style sheets that a
  // script makes and styles that it sets on elements are allowed: what it writes goes there.
  const make = document.createElement.bind(document);
  const written = () => {
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets.push(sheet);
    const element = make("span");
    element.hidden = true;
    Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text), get: () => "" });
    return element;
  };
  document.createElement = (name, options) => (name === "style" ? written() : make(name, options));
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style" && this.style) this.style.cssText = value;
    else set.call(this, name, value);
  };

  const terminal = new Terminal({
    fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace',
    fontSize: 13,
    scrollback: 5000,
    theme: { background: "#12161a", foreground: "#e4eae7", cursor: "#6fd3a4", selectionBackground: "#3d5a4e" },
  });
  const fit = new FitAddon.FitAddon();
  terminal.loadAddon(fit);
  terminal.open(place);
  fit.fit();
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.key !== "F6" || !event.ctrlKey) return true;
    if (event.type === "keydown") (again.hidden ? document.querySelector(".crumbs a") : again).focus();
    return false;
  });

  const bytes = new TextEncoder();
  const size = () => ({ rows: terminal.rows, cols: terminal.cols });
  let socket = null;
  function connect() {
    again.hidden = true;
    state.textContent = "Connecting…";
    terminal.reset();
    socket = new WebSocket(new URL(place.dataset.socket, location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    let said = null;
    socket.addEventListener("open", () => {
      socket.send(JSON.stringify({ csrf: place.dataset.csrf, size: size() }));
      state.textContent = `Connected to ${place.dataset.node}`;
      terminal.focus();
    });
    socket.addEventListener("message", (event) => {
      if (typeof event.data !== "string") {
        terminal.write(new Uint8Array(event.data));
        return;
      }
      const end = JSON.parse(event.data);
      said = end.problem ? `${end.problem[0]}; ${end.problem[1]}` : `The shell ended with status ${end.exit}`;
    });
    socket.addEventListener("close", () => {
      state.textContent = said ?? "The connection is lost";
      again.hidden = false;
      socket = null;
    });
  }
  const send = (what) => socket && socket.readyState === WebSocket.OPEN && socket.send(what);
  terminal.onData((text) => send(bytes.encode(text)));
  terminal.onBinary((text) => send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
  terminal.onResize(() => send(JSON.stringify(size())));
  new ResizeObserver(() => fit.fit()).observe(place);
  again.addEventListener("click", connect);
  window.addEventListener("pagehide", () => socket && socket.close());
  connect();
})();
