// An echo server in Node, as its documentation of net.createServer writes it. Prints tcp://127.0.0.1:PORT once it
// accepts.
import net from "node:net";

const server = net.createServer({ noDelay: true }, (peer) => {
  peer.on("error", () => peer.destroy()); // unheard, the first reset would end the server
  peer.pipe(peer);
});

server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
  console.log(`tcp://127.0.0.1:${server.address().port}`);
});
