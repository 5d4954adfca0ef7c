// What both pages need: elements without markup in strings, and questions to the server with the token.

const KEY = `trueport token ${new URL(".", location.href).pathname}`;
let kept = "";

/** An element with these properties; children are nodes, or strings that become text and never markup. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** What the server, or the way to it, has to say instead of an answer. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A storage that the browser denies is replaced by this page's own memory. */
export function token() {
  try {
    return sessionStorage.getItem(KEY) ?? kept;
  } catch {
    return kept;
  }
}

export function keepToken(text) {
  kept = text;
  try {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  } catch {
    // denied: it lives as long as this page
  }
}

/** The response to a question; throws a Refusal, whose status is 0 where no answer came. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer.");
  }
  if (!response.ok) throw new Refusal(response.status, await sentence(response));
  return response;
}

async function sentence(response) {
  try {
    return (await response.json()).error || `The server answered ${response.status}.`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

/** Lets the form #unlock ask for the token; `again` is called when there is one to try. */
export function unlocking(again) {
  const form = document.getElementById("unlock");
  const field = document.getElementById("token");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    field.value = "";
    again();
  });
  return {
    locked: () => !form.hidden,
    show() {
      document.getElementById("unlock-why").textContent = token()
        ? "The server does not take that token. Try another."
        : "This server asks for a token. It is kept until this tab is closed.";
      keepToken("");
      form.hidden = false;
      field.focus();
    },
    hide() {
      form.hidden = true;
    },
  };
}
