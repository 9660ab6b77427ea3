// Many instances in one process, over as many sims: half of them prefill, half decode. Run as
// `node --import=tsx fleet.ts COUNT CONSUL`; says "ready" and serves until its standard input ends.
import { simDecode, simPrefill } from "../../instance/legs.ts";

const [count, consul] = [Number(process.argv[2]), process.argv[3]!];
const flags = { "registry.kind": "consul", "consul.address": consul };
for (let index = 0; index < count; index += 20) {
  const some = Array.from({ length: Math.min(20, count - index) }, (_, at) =>
    at % 2 === 0 ? simPrefill("p2p-zmq", flags) : simDecode("p2p-zmq", flags),
  );
  await Promise.all(some);
}
console.log("ready");
process.stdin.on("end", () => process.exit(0)).resume();
