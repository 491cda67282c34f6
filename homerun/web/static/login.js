// The token from the form, or from the link's part after "#", which no server and no log ever sees.
"use strict";
async function open(token) {
  const answer = await fetch("/login", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }),
  });
  if (answer.ok) {
    location.replace(location.pathname === "/login" ? "/" : location.pathname + location.search);
    return;
  }
  document.getElementById("wrong").textContent = (await answer.json()).error.message;
}

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", location.pathname + location.search);
  open(given);
}
document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  open(document.getElementById("token").value.trim());
});
