// A program that passes for vLLM 0.23.0 with P2P NCCL: its command line, its log lines, its pings; behind them the sim,
// told to fail as P2P NCCL fails: also with a decode engine that comes back at the KV address of an earlier one, or dies
// while KV is sent to it. Run through a script named `vllm` (see fakeVllm), with a folder of its own in TMPDIR where the
// decode engines leave word of themselves. Its API server answers 500 to a prompt that holds POISON, and after a POST to
// /fake/sick to all, as vLLM does for bodies that it dislikes: its engine hears nothing of them.
import { encode } from "@msgpack/msgpack";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer, request, type ClientRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { Dealer } from "zeromq";
import { startSimEngine } from "../../services/tiny-engine/server.ts";

const [verb, ...args] = process.argv.slice(2);
if (verb === "--version") {
  console.log("0.23.0");
  process.exit(0);
}
const valueOf = (flag: string): string => args[args.indexOf(flag) + 1]!;
if (args.includes("--fail-at-start")) {
  console.error("(EngineCore pid=1) ERROR 11-22 16:00:00 [core.py:1] Traceback (most recent call last):");
  console.error(
    "(EngineCore pid=1) ERROR 11-22 16:00:00 [core.py:1] ValueError: No available memory for the cache blocks.",
  );
  console.error(
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
  );
  process.exit(1);
}
const kv = JSON.parse(valueOf("--kv-transfer-config")) as {
  kv_role: string;
  kv_port: string;
  kv_connector_extra_config: { proxy_ip: string; proxy_port: string; http_port: string };
};
const host = process.env["VLLM_HOST_IP"]!;
if (process.env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] !== "1") throw new Error("ids would be randomised");
const producer = kv.kv_role === "kv_producer";
const mode = args.includes("--enforce-eager")
  ? "NONE"
  : (JSON.parse(valueOf("--compilation-config")) as { cudagraph_mode: string }).cudagraph_mode;
console.log(
  `(EngineCore pid=1) INFO Initializing a V1 LLM engine (v0.23.0) with config: model='${args[0]}', dtype=torch.bfloat16, tensor_parallel_size=1, ` +
    `enforce_eager=${mode === "NONE" ? "True" : "False"}, kv_cache_dtype=auto, device_config=cuda, enable_chunked_prefill=False, compilation_config={'cudagraph_mode': <CUDAGraphMode.${mode}: 1>}`,
);
console.log("Starting to load model");

const { proxy_ip, proxy_port, http_port } = kv.kv_connector_extra_config;
const address = `${host}:${kv.kv_port}`;
const dealer = new Dealer({ routingId: address, linger: 0 });
dealer.connect(`tcp://${proxy_ip}:${proxy_port}`);
const ping = (): void =>
  void dealer
    .send(
      Buffer.from(encode({ type: producer ? "P" : "D", http_address: `${host}:${http_port}`, zmq_address: address })),
    )
    .catch(() => {});
ping();
setInterval(ping, 3_000);

const sim = await startSimEngine({
  host: "127.0.0.1",
  port: 0,
  modelName: valueOf("--served-model-name"),
  connector: "p2p-zmq",
  role: producer ? "prefill" : "decode",
  kvListen: address,
  faults: ["upstream"],
  inject: true,
  decodeMsPerToken: 5,
  // A partner that is gone is waited for, as by vLLM's sender thread.
  kvPushTimeoutMs: 3_600_000,
  reportCachedTokens: true,
});
// The sim says that it is 0.32: only that is another one.
const { hostname, port } = new URL(sim.url);
const wordOf = (kvAddress: string): string => join(tmpdir(), `fake-vllm-at-${kvAddress}`);
if (!producer) writeFileSync(wordOf(address), String(process.pid));
/** By KV address: the decode engine to which there is a connection. vLLM never drops one. */
const partners = new Map<string, string>();
const POISON = "a poisonous prompt";
let sick = false;

/** Returns a function that says whether that partner has died since. */
function meetPartner(id: string | undefined): () => boolean {
  const at = /___decode_addr_(.*):(\d+)_/.exec(id ?? "");
  if (!producer || at === null) return () => false;
  const kvAddress = `${at[1]}:${at[2]}`;
  const pid = readFileSync(wordOf(kvAddress), "utf8");
  const known = partners.get(kvAddress) ?? pid;
  partners.set(kvAddress, known);
  // An old communicator, used on a new process: nothing ever comes through it.
  if (known !== pid) sim.setFault("hang");
  return () => !isAlive(Number(pid));
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

const server = createServer((incoming, outgoing) => {
  if (incoming.url === "/version")
    return outgoing.setHeader("content-type", "application/json").end('{"version":"0.23.0"}');
  const { method, url: path, headers } = incoming;
  if (path === "/fake/sick") {
    sick = true;
    return outgoing.end();
  }
  const isCompletion = method === "POST" && path!.startsWith("/v1/");
  const partnerDied = isCompletion ? meetPartner(headers["x-request-id"] as string | undefined) : () => false;
  // The forward pass waits for a partner that is gone, and with it the whole engine.
  const looking = setInterval(() => {
    if (!partnerDied()) return;
    clearInterval(looking);
    sim.setFault("hang");
  }, 100);
  outgoing.on("close", () => clearInterval(looking));
  if (isCompletion && producer) {
    return void buffer(incoming).then((body) => {
      if (!sick && !body.includes(POISON)) return forward().end(body);
      outgoing.writeHead(500, { "content-type": "application/json" });
      const error = { message: "list index out of range", type: "InternalServerError", param: null, code: 500 };
      return outgoing.end(JSON.stringify({ error }));
    });
  }
  return incoming.pipe(forward());

  function forward(): ClientRequest {
    const call = request({ hostname, port, method, path, headers, agent: false }, (answer) => {
      // KV that can't be pushed: vLLM waits for its partner, and from then on answers nobody.
      if (producer && answer.statusCode! >= 500) return sim.setFault("hang");
      outgoing.writeHead(answer.statusCode!, answer.headers);
      answer.pipe(outgoing);
      answer.on("error", () => outgoing.destroy());
    });
    call.on("error", () => outgoing.destroy());
    outgoing.on("close", () => call.destroy());
    return call;
  }
});
const started = (): void => console.log("INFO:     Application startup complete.");
if (args.includes("--uds")) server.listen(valueOf("--uds"), started);
else server.listen(Number(valueOf("--port")), valueOf("--host"), started);
