// Changes toxics of a running server with toxiproxy-node-client while a connection is open. Prints a line for each
// step that has succeeded. Arguments: the URL of the control API, and the name of the proxy.
const net = require("net");
const { Toxiproxy } = require("toxiproxy-node-client");

function connect(address) {
  const [host, port] = address.split(":");
  const socket = net.connect(Number(port), host);
  const received = [];
  let wake = () => {};
  socket.on("data", (data) => { received.push(data.toString()); wake(); });
  socket.on("close", () => { received.push("closed"); wake(); });
  // The next chunk, or "closed".
  const next = async () => {
    while (!received.length) await new Promise((resolve) => { wake = resolve; });
    return received.shift();
  };
  return { send: (text) => socket.write(text), next, waits: () => !received.length };
}

function expect(step, condition) {
  if (!condition) throw new Error(step);
  console.log(step);
}

async function main(url, name) {
  const toxiproxy = new Toxiproxy(url);
  expect("version", (await toxiproxy.getVersion()).includes("2.12.0"));
  const first = await toxiproxy.get(name);
  const open = connect(first.listen);
  open.send("a");
  expect("echo", (await open.next()) === "a");

  const held = { name: "held", type: "latency", stream: "downstream", toxicity: 1 };
  const toxic = await first.addToxic({ ...held, attributes: { latency: 1000000, jitter: 0 } });
  open.send("b");
  await toxiproxy.getAll();
  expect("add", open.waits());
  await toxic.update({ attributes: { latency: 0, jitter: 0 } });
  expect("change", (await open.next()) === "b");

  const hole = await first.addToxic({ ...held, name: "hole", type: "timeout", attributes: { timeout: 0 } });
  await hole.remove(); // ends the connections on which it acted
  expect("remove", (await open.next()) === "closed");

  const { populated } = await toxiproxy.populate([
    { name: "populated", listen: "127.0.0.1:0", upstream: first.listen, enabled: true },
  ]);
  const forwarded = connect(populated.listen);
  forwarded.send("d");
  expect("forward", (await forwarded.next()) === "d");
  const disabled = await populated.update({ enabled: false, listen: populated.listen, upstream: populated.upstream });
  expect("disable", !disabled.enabled && (await forwarded.next()) === "closed");
  await toxiproxy.reset();
  expect("reset", (await toxiproxy.get("populated")).enabled);
  await populated.remove();
  const missing = await toxiproxy.get("populated").then(() => "", (error) => String(error));
  expect("delete", missing !== "");
}

main(process.argv[2], process.argv[3]).then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
