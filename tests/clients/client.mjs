// A client as an application in Node would write it: `ws`, and a token by `jsonwebtoken`. The same arguments and the same
// lines as client.py.

import { parseArgs } from "node:util";
import jwt from "jsonwebtoken";
import WebSocket from "ws";

const SECRET = "a secret that only tests know, and only they";
const PATIENCE_MS = 30000;
const GOODBYE = "goodbye ".repeat(500);

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    way: { type: "string", default: "header" },
    take: { type: "string", default: "1" },
    ack: { type: "boolean", default: false },
    token: { type: "string", default: "good" },
  },
});
let [url, user] = positionals;

const token = jwt.sign({ sub: user }, SECRET + (given.token === "wrong" ? " not" : ""), {
  algorithm: "HS256",
  expiresIn: given.token === "expired" ? -3600 : 3600,
});
const protocols = given.way === "protocol" ? ["pushgate.v1.json", `bearer.${token}`] : [];
const headers = given.way === "header" ? { Authorization: `Bearer ${token}` } : {};
if (given.way === "query") url += (url.includes("?") ? "&" : "?") + "token=" + token;

function decode(data, isBinary) {
  if (!isBinary) return JSON.parse(data.toString("utf8"));
  const length = data.readUInt32BE(0);
  const envelope = JSON.parse(data.subarray(4, 4 + length).toString("utf8"));
  return { ...envelope, payloadBase64: data.subarray(4 + length).toString("base64") };
}

const print = (value) => console.log(JSON.stringify(value));
const send = (value) => socket.send(JSON.stringify(value));
const patience = setTimeout(() => {
  console.error("nothing more came");
  process.exit(1);
}, PATIENCE_MS);

let left = Number(given.take);
const socket = new WebSocket(url, protocols, { headers });
let deflate = false;
socket.on("open", () => {
  deflate = socket.extensions.includes("permessage-deflate");
  if (given.way === "message") send({ type: "auth", token });
  if (given.way === "protocol" && socket.protocol !== "pushgate.v1.json") throw new Error(socket.protocol);
});
socket.on("message", (data, isBinary) => {
  const message = decode(data, isBinary);
  print(message);
  if (message.type === "notification") {
    left -= 1;
    if (given.ack) send({ type: "ack", offset: message.offset });
  } else if (message.type === "echo_response") {
    if (message.data !== GOODBYE) throw new Error("another echo");
    socket.close(1000);
  }
  if (left === 0 && ["auth_success", "notification"].includes(message.type)) {
    // What was received before the answer is confirmed by then.
    send({ type: "echo", id: "bye", data: GOODBYE });
  }
});
socket.on("error", (error) => console.error(error.message));
socket.on("close", (code, reason) => {
  clearTimeout(patience);
  print({ closed: code, reason: reason.toString("utf8"), deflate });
});
