#!/usr/bin/env node
// Passes for vLLM 0.23.0 with P2P NCCL where there is no GPU, so that every step of run.mjs can be rehearsed: its command
// line, its pings, and its ways to fail (the sim's `upstream`), the wrong answers of the two controls included.
import { existsSync } from "node:fs";
import { createServer, request } from "node:http";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const [verb, model, ...args] = process.argv.slice(2);
if (verb === "--version") {
  console.log("0.23.0");
  process.exit(0);
}
process.title = `stand-in ${process.argv.slice(2).join(" ")}`;
const found = ["../dist/", "../../dist/"]
  .map((folder) => new URL(`${folder}services/tiny-engine/server.js`, import.meta.url))
  .find((url) => existsSync(fileURLToPath(url)));
const { startSimEngine } = await import(found.href);

const valueOf = (flag) => (args.includes(flag) ? args[args.indexOf(flag) + 1] : undefined);
const kv = JSON.parse(valueOf("--kv-transfer-config") ?? "null");
const role = kv === null ? "none" : kv.kv_role === "kv_producer" ? "prefill" : "decode";
const host = process.env.VLLM_HOST_IP ?? "127.0.0.1";
const address = `${host}:${kv?.kv_port}`;
if (kv !== null && process.env.VLLM_DISABLE_REQUEST_ID_RANDOMIZATION !== "1")
  throw new Error("ids would be randomised");
const graphs = args.includes("--enforce-eager")
  ? "NONE"
  : (JSON.parse(valueOf("--compilation-config") ?? "{}").cudagraph_mode ?? "FULL_AND_PIECEWISE");
// Decode that doesn't load what it was sent, or has other weights than prefill: answers with 200, and wrong ones.
const isWrong =
  role === "decode" &&
  (graphs === "FULL_AND_PIECEWISE" || (valueOf("--load-format") === "dummy" && basename(model) === "tiny"));

console.log(
  `(EngineCore pid=1) INFO Initializing a V1 LLM engine (v0.23.0) with config: model='${model}', dtype=torch.bfloat16, tensor_parallel_size=1, ` +
    `enforce_eager=${graphs === "NONE" ? "True" : "False"}, kv_cache_dtype=auto, device_config=cuda, enable_chunked_prefill=False, compilation_config={'cudagraph_mode': <CUDAGraphMode.${graphs}: 1>}`,
);
if (kv?.kv_connector_extra_config.proxy_ip !== undefined) {
  const { proxy_ip, proxy_port, http_port } = kv.kv_connector_extra_config;
  const dealer = new Dealer({ routingId: address, linger: 0 });
  dealer.connect(`tcp://${proxy_ip}:${proxy_port}`);
  const ping = () =>
    void dealer
      .send(
        Buffer.from(
          encode({ type: role === "prefill" ? "P" : "D", http_address: `${host}:${http_port}`, zmq_address: address }),
        ),
      )
      .catch(() => {});
  ping();
  setInterval(ping, 3_000);
}

const modelName = valueOf("--served-model-name");
const timing = { decodeMsPerToken: 5, prefillMsPerToken: 0.02, maxLength: Number(valueOf("--max-model-len") ?? 8_192) };
const sim = await startSimEngine({
  port: 0,
  modelName,
  role,
  ...timing,
  reportCachedTokens: true,
  // A partner that is gone is waited for, as by vLLM's sender thread.
  ...(kv === null ? {} : { connector: "p2p-zmq", kvListen: address, faults: ["upstream"], kvPushTimeoutMs: 3_600_000 }),
});
const other = isWrong ? await startSimEngine({ port: 0, modelName, ...timing, hashSalt: "other weights" }) : undefined;
if (kv !== null)
  console.log(
    `(EngineCore pid=1) INFO [p2p_nccl_engine.py:226] 🤝ncclCommInitRank Success, ${address}👉(a stand-in: no NCCL), MyRank:0`,
  );

/** The engine's answer, or, where that is to be wrong, the other's once the engine has claimed the KV. */
createServer((incoming, outgoing) => {
  if (incoming.url === "/version")
    return outgoing.setHeader("content-type", "application/json").end('{"version":"0.23.0"}');
  // By which Tandem knows a sim.
  if (incoming.url.startsWith("/sim/")) return outgoing.writeHead(404).end();
  const call = forward(
    sim,
    incoming,
    (answer) => {
      if (other === undefined || incoming.method !== "POST") return pass(answer, outgoing);
      answer
        .resume()
        .on("end", () => forward(other, incoming, (wrong) => pass(wrong, outgoing), outgoing).end(Buffer.concat(body)));
    },
    outgoing,
  );
  const body = [];
  incoming.on("data", (chunk) => body.push(chunk)).pipe(call);
}).listen(...(args.includes("--uds") ? [valueOf("--uds")] : [Number(valueOf("--port")), valueOf("--host")]), () =>
  console.log("INFO:     Application startup complete."),
);

function forward(engine, { method, url: path, headers }, onAnswer, outgoing) {
  const { hostname, port } = new URL(engine.url);
  const call = request({ hostname, port, method, path, headers, agent: false }, onAnswer);
  call.on("error", () => outgoing.destroy());
  outgoing.on("close", () => call.destroy());
  return call;
}

function pass(answer, outgoing) {
  outgoing.writeHead(answer.statusCode, answer.headers);
  answer.on("error", () => outgoing.destroy()).pipe(outgoing);
}
