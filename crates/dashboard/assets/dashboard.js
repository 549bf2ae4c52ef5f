// What pages do beyond links and forms. Everything works without it except what is live.
"use strict";

(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const own = document.currentScript;
  // Whether the libraries are still on their way.
  document.documentElement.dataset.coming = "";
  const coming = () => document.documentElement.dataset.coming !== undefined;

  // Times in the reader's zone. To make what writes them takes a while: it is done when the first is written.
  let zone = null;
  function times(all) {
    for (const time of all) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      zone ??= new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
      time.title = zone.format(at);
      if (time.dataset.show === "full") time.textContent = time.title;
    }
  }

  // The dialog: whatever is put into it opens it.
  const dialog = $("#dialog");
  function show(target) {
    if (dialog && target.id === "dialog-body" && target.childElementCount > 0) {
      if (!dialog.open) dialog.showModal();
      const first = $("[autofocus]", target) ?? $("h2", target);
      if (first) first.focus();
    }
  }
  if (dialog) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) {
        event.preventDefault();
        dialog.close();
      }
    });
    dialog.addEventListener("close", () => {
      $("#dialog-body").replaceChildren();
      // An operation's page was shown: what lies below is still the page it was opened from.
      if (dialog.dataset.home && location.pathname.startsWith("/operations/")) {
        history.replaceState(null, "", dialog.dataset.home);
      }
      if (!coming()) htmx.trigger(document.body, "tick");
    });
  }

  // Links to questions (clone, rename, remove) open them here; a row's menu is one for all rows. With a key held down,
  // links are what they are.
  const menu = $("#menu");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-dialog], a[data-menu]");
    if (!link || coming() || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    if (link.dataset.menu !== undefined) {
      if (!menu || !menu.showPopover) return;
      event.preventDefault();
      const row = link.href.split("#")[0];
      for (const item of $$("a", menu)) item.href = row + item.dataset.to;
      menu.showPopover();
      const at = link.getBoundingClientRect();
      const top = Math.min(at.bottom + 4, innerHeight - menu.offsetHeight - 8);
      menu.style.top = `${Math.max(8, top)}px`;
      menu.style.left = `${Math.max(8, at.right - menu.offsetWidth)}px`;
      $("a", menu).focus();
      opener = link.id || link.closest("tr").id;
      return;
    }
    event.preventDefault();
    if (menu && menu.contains(link)) menu.hidePopover();
    htmx.ajax("GET", link.getAttribute("href"), { target: "#dialog-body", swap: "innerHTML" });
  });
  let opener = null;
  if (menu) {
    menu.addEventListener("toggle", (event) => {
      const row = event.newState === "closed" && opener && document.getElementById(opener);
      if (row && (menu.contains(document.activeElement) || document.activeElement === document.body)) {
        $("a[data-menu]", row).focus();
      }
    });
    menu.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const items = $$("a", menu);
      items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    });
    addEventListener("scroll", () => menu.matches(":popover-open") && menu.hidePopover(), { passive: true });
  }

  // Start and stop leave the page where it is.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (event.target.id !== "act" || coming() || !button || button.dataset.go !== undefined) return;
    event.preventDefault();
    const values = Object.fromEntries(new FormData(event.target));
    htmx.ajax("POST", button.getAttribute("formaction"), { target: "#notices", swap: "innerHTML", values });
  });

  document.addEventListener("keydown", (event) => {
    // As in many lists: a slash goes to the search.
    if (event.key === "/" && !event.target.closest("input, textarea, select") && $("#q")) {
      event.preventDefault();
      $("#q").focus();
    }
  });

  // Shares: the slider and the number of a side say the same, and what all come to is told beside them.
  function shares(form) {
    const rows = $$("[data-share]", form);
    const weight = (row) => {
      const leaves = $("input[type=checkbox]", row);
      const nobody = $("select", row);
      return (leaves && leaves.checked) || (nobody && !nobody.value) ? 0 : Number($("input[type=number]", row).value) || 0;
    };
    const sum = rows.reduce((sum, row) => sum + weight(row), 0);
    const percent = new Intl.NumberFormat("en", { maximumFractionDigits: 1, useGrouping: false });
    for (const row of rows) {
      const leaves = $("input[type=checkbox]", row);
      row.classList.toggle("leaving", Boolean(leaves && leaves.checked));
      $("output", row).textContent = `${percent.format(sum > 0 ? (weight(row) / sum) * 100 : 0)} %`;
    }
  }
  document.addEventListener("input", (event) => {
    const row = event.target.closest("[data-share]");
    if (!row) return;
    const slider = $("input[type=range]", row);
    const number = $("input[type=number]", row);
    if (event.target === slider) {
      // In steps that a person would choose: tenths below ten, whole numbers above.
      const value = Number(slider.value);
      number.value = value < 10 ? Math.round(value * 10) / 10 : Math.round(value);
    }
    if (event.target === number) slider.value = number.value;
    shares(row.closest("form"));
  });

  // What is wider than its place is moved by the arrow keys: it can have the focus, and says what it is.
  function scrollers() {
    for (const region of $$(".scroll")) {
      if (region.scrollWidth <= region.clientWidth) {
        if (region !== document.activeElement) region.removeAttribute("tabindex");
        continue;
      }
      const title = $("h1, h2", region.closest("section") || document);
      region.tabIndex = 0;
      region.role = "region";
      region.ariaLabel = title ? `${title.textContent}, table` : "Table";
    }
  }
  addEventListener("resize", scrollers);

  // Whoever is at a button that goes away is led to the name of its row, or to the heading of the part that held it.
  let held = [];
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const target = event.detail.target;
    const active = document.activeElement;
    held = target.contains(active) ? [active.closest("tr[id]"), target].filter(Boolean).map((place) => place.id) : [];
  });
  function hold() {
    if (document.activeElement !== document.body) return;
    for (const place of held.map((id) => document.getElementById(id)).filter(Boolean)) {
      const to = $(place.matches("tr") ? "th a" : "h1, h2", place);
      if (!to) continue;
      if (!to.matches("a")) to.tabIndex = -1;
      to.focus();
      return;
    }
  }

  document.body.addEventListener("htmx:afterSwap", (event) => {
    times($$("time[datetime]", event.detail.target));
    show(event.detail.target);
    scrollers();
    hold();
  });
  document.body.addEventListener("htmx:sendError", () => state("lost"));

  // The stream that says what changed. Hidden pages let go of it: browsers have few connections for a host.
  let source = null;
  let lost = false;
  function state(now) {
    const sign = $("#live");
    lost = now === "lost";
    if (sign) {
      sign.dataset.state = now;
      $("span", sign).textContent = now === "live" ? "live" : "not connected";
    }
  }
  function open() {
    if (source || coming() || document.hidden || !document.body.dataset.live) return;
    source = new EventSource(document.body.dataset.live);
    source.addEventListener("open", () => {
      if (lost) htmx.trigger(document.body, "tick");
      state("live");
    });
    source.addEventListener("error", () => {
      state("lost");
      if (source && source.readyState === EventSource.CLOSED) {
        // Nobody is signed in any more, or the daemon starts anew: what is asked for tells which.
        source = null;
        setTimeout(open, 5000);
        htmx.trigger(document.body, "tick");
      }
    });
    source.addEventListener("operation", (event) => {
      htmx.trigger(document.body, "operation");
      htmx.trigger(document.body, `operation-${event.data}`);
    });
    source.addEventListener("tick", () => htmx.trigger(document.body, "tick"));
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      if (source) source.close();
      source = null;
    } else {
      lost = true;
      open();
    }
  });
  window.addEventListener("pagehide", () => source && source.close());

  // Logs that go on.
  const log = $("#log");
  if (log && log.dataset.follow) {
    const most = 5000;
    let stream = null;
    const part = (name, text) => {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      return span;
    };
    const add = (line) => {
      const end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      const row = document.createElement("li");
      if (line.error) row.className = "error";
      row.append(part("at", line.time), part("node", line.node), part("text", line.line));
      row.hidden = !matches(row);
      log.append(row);
      while (log.childElementCount > most) log.firstElementChild.remove();
      if (end) log.scrollTop = log.scrollHeight;
    };
    const search = $("#search");
    const matches = (row) => !search.value || row.textContent.toLowerCase().includes(search.value.toLowerCase());
    search.addEventListener("input", () => {
      for (const row of log.children) row.hidden = !matches(row);
    });
    const button = $("#follow");
    const follow = () => {
      stream = new EventSource(log.dataset.follow);
      stream.addEventListener("open", () => log.replaceChildren());
      stream.addEventListener("line", (event) => add(JSON.parse(event.data)));
    };
    const pause = () => {
      if (stream) stream.close();
      stream = null;
    };
    button.hidden = false;
    $("#searching").hidden = false;
    button.addEventListener("click", () => {
      if (stream) pause();
      else follow();
      button.setAttribute("aria-pressed", String(Boolean(stream)));
    });
    window.addEventListener("pagehide", pause);
    log.scrollTop = log.scrollHeight;
    follow();
  }

  // Words that change are the reader's before the page is seen.
  times($$("time[data-show=full]"));

  // What is not seen comes after it, the libraries among it: until then links are links and forms are forms.
  async function begin() {
    await seen();
    const libraries = own.dataset.libraries.split(" ").map((name) => {
      const script = document.createElement("script");
      script.src = new URL(name, own.src);
      script.async = false;
      document.head.append(script);
      return new Promise((loaded, failed) => Object.assign(script, { onload: loaded, onerror: failed }));
    });
    times($$("time[datetime]"));
    scrollers();
    await Promise.all(libraries);
    // What a person opened stays open, what they type stays typed, while parts of the page are replaced.
    Idiomorph.defaults.ignoreActiveValue = true;
    Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
      !(name === "open" && node.matches("details, dialog")) && !(name === "tabindex" && node.matches(".scroll"));
    delete document.documentElement.dataset.coming;
    open();
  }
  // Once something was painted and all of the page is there (htmx begins by itself only then); hidden pages are not
  // painted.
  function seen() {
    const painted = new Promise((yes) => {
      if (document.hidden || !PerformanceObserver.supportedEntryTypes.includes("paint")) yes();
      else new PerformanceObserver(yes).observe({ type: "paint", buffered: true });
    });
    const there = new Promise((yes) => addEventListener("load", yes));
    return Promise.all([painted, there]);
  }
  begin();
})();
