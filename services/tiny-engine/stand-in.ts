// A program that passes for vLLM 0.23.0 where there is no GPU: its command line, its log lines, its pings. Behind them
// is the sim. With P2P NCCL it also fails as that does (protocol notes: docs/vllm.md): missing KV hangs decode, a decode
// engine that dies or comes back at an old address hangs prefill, and an id without addresses kills the engine. For
// tests, chaos and rehearsals of GPU runs: `vllm.command` names it. Decode engines leave word of themselves in TMPDIR.
//
// Words of its own on the command line: `--fail-at-start`, and `--inject`, which opens /sim/state and /sim/fault.
// A request whose body contains POISON gets a 500 from a live engine, as vLLM answers bodies that it stumbles over.
import { encode } from "@msgpack/msgpack";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, request, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { Dealer } from "zeromq";
import { POISON } from "./faults.ts";
import { startSimEngine, type SimEngineOptions } from "./server.ts";

const VERSION = "0.23.0";
const PARTNER_LOOK_MS = 100;
const FOREVER_MS = 24 * 3_600_000;
const say = (line: string): void => void process.stdout.write(`${line}\n`);
const complain = (line: string): void => void process.stderr.write(`${line}\n`);

interface TransferConfig {
  readonly kv_connector: string;
  readonly kv_role: string;
  readonly kv_port?: string;
  readonly kv_connector_extra_config?: {
    readonly proxy_ip?: string;
    readonly proxy_port?: string;
    readonly http_port: string;
  };
}

const [verb, model = "", ...args] = process.argv.slice(2);
if (verb === "--version") {
  say(VERSION);
  process.exit(0);
}
const valueOf = (flag: string): string | undefined => (args.includes(flag) ? args[args.indexOf(flag) + 1] : undefined);
if (args.includes("--fail-at-start")) {
  complain("(EngineCore pid=1) ERROR 11-22 16:00:00 [core.py:1] Traceback (most recent call last):");
  complain("(EngineCore pid=1) ERROR 11-22 16:00:00 [core.py:1] ValueError: No available memory for the cache blocks.");
  complain(
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
  );
  process.exit(1);
}

const transfer = JSON.parse(valueOf("--kv-transfer-config") ?? "null") as TransferConfig | null;
const role = transfer === null ? "none" : transfer.kv_role === "kv_producer" ? "prefill" : "decode";
const isP2p = transfer?.kv_connector === "P2pNcclConnector";
const host = process.env["VLLM_HOST_IP"] ?? "127.0.0.1";
const kvAddress = isP2p
  ? `${host}:${transfer.kv_port}`
  : `${process.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] ?? host}:${process.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] ?? 0}`;
if (isP2p && process.env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] !== "1") throw new Error("ids would be randomised");

const graphs = args.includes("--enforce-eager")
  ? "NONE"
  : ((JSON.parse(valueOf("--compilation-config") ?? "{}") as { cudagraph_mode?: string }).cudagraph_mode ??
    "FULL_AND_PIECEWISE");
say(
  `(EngineCore pid=1) INFO Initializing a V1 LLM engine (v${VERSION}) with config: model='${model}', dtype=torch.bfloat16, tensor_parallel_size=1, ` +
    `enforce_eager=${graphs === "NONE" ? "True" : "False"}, kv_cache_dtype=auto, device_config=cuda, enable_chunked_prefill=False, compilation_config={'cudagraph_mode': <CUDAGraphMode.${graphs}: 1>}`,
);
say("Starting to load model");
pingRouter();

const modelName = valueOf("--served-model-name");
const isOpen = args.includes("--inject");
const timing = {
  decodeMsPerToken: Number(valueOf("--sim-decode-ms") ?? 5),
  prefillMsPerToken: Number(valueOf("--sim-prefill-ms") ?? 0.02),
  maxLength: Number(valueOf("--max-model-len") ?? 8_192),
};
const sim = await startSimEngine({
  port: 0,
  modelName,
  role,
  ...timing,
  inject: isOpen,
  onDeath: () => process.exit(1),
  reportCachedTokens: true,
  ...transferOptions(),
});
const other = answersWrong()
  ? await startSimEngine({ port: 0, modelName, ...timing, hashSalt: "other weights" })
  : undefined;
/** By KV address: the decode process to which this engine has a connection, which vLLM never drops. */
const partners = new Map<string, string>();
if (isP2p && role === "decode") {
  writeFileSync(noteOf(kvAddress), String(process.pid));
}
if (isP2p)
  say(
    `(EngineCore pid=1) INFO [p2p_nccl_engine.py:226] 🤝ncclCommInitRank Success, ${kvAddress}👉(a stand-in: no NCCL), MyRank:0`,
  );

const server = createServer((incoming, outgoing) => {
  void serve(incoming, outgoing).catch(() => outgoing.destroy());
});
const started = (): void => say("INFO:     Application startup complete.");
const socketPath = valueOf("--uds");
if (socketPath === undefined) server.listen(Number(valueOf("--port")), valueOf("--host") ?? "127.0.0.1", started);
else server.listen(socketPath, started);

// As uvicorn: stops listening, lets running requests end, and goes.
process.once("SIGTERM", () => {
  server.close();
  const leave = (): void => {
    const { running, waiting } = sim.state();
    if (running + waiting === 0) process.exit(0);
  };
  leave();
  setInterval(leave, 20);
});

function transferOptions(): SimEngineOptions {
  if (transfer === null) return {};
  if (!isP2p) return { connector: "nixl", kvListen: kvAddress };
  // A partner that is gone is waited for, as by vLLM's sender thread, and KV that no leg claims stays.
  return {
    connector: "p2p-zmq",
    kvListen: kvAddress,
    faults: ["upstream"],
    kvPushTimeoutMs: FOREVER_MS,
    kvLeaseMs: FOREVER_MS,
  };
}

/** Whether decode is started so that it doesn't load what it was sent, or has other weights: 200, and wrong answers. */
function answersWrong(): boolean {
  if (!isP2p || role !== "decode") return false;
  return graphs === "FULL_AND_PIECEWISE" || (valueOf("--load-format") === "dummy" && basename(model) === "tiny");
}

async function serve(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  const { url = "/", method } = incoming;
  if (url === "/version") {
    outgoing.setHeader("content-type", "application/json").end(`{"version":"${VERSION}"}`);
    return;
  }
  // By which Tandem knows a sim.
  if (url.startsWith("/sim/") && (!isOpen || url === "/sim/kind")) {
    outgoing.writeHead(404).end();
    return;
  }
  watchPartner(String(incoming.headers["x-request-id"] ?? ""), outgoing);
  const pieces: Buffer[] = [];
  for await (const piece of incoming) pieces.push(piece as Buffer);
  const body = Buffer.concat(pieces);
  if (method === "POST" && url.startsWith("/v1/") && body.includes(POISON)) {
    outgoing.writeHead(500, { "content-type": "application/json" });
    outgoing.end('{"error":{"message":"a template error","type":"InternalServerError","param":null,"code":500}}');
    return;
  }
  const answer = await forwarded(sim, incoming, body, outgoing);
  if (isP2p && role === "prefill" && answer.statusCode! >= 500) {
    const text = await textOf(answer);
    // KV that can't be pushed: vLLM waits for its partner, and from then on answers no request.
    if (/kv_refused|kv_push_failed/.test(text)) return sim.setFault("hang");
    outgoing.writeHead(answer.statusCode!, answer.headers).end(text);
    return;
  }
  if (other === undefined || method !== "POST") return pass(answer, outgoing);
  // Only once the engine has claimed the KV.
  await textOf(answer);
  pass(await forwarded(other, incoming, body, outgoing), outgoing);
}

function forwarded(
  engine: { readonly url: string },
  { method, url: path, headers }: IncomingMessage,
  body: Buffer,
  outgoing: ServerResponse,
): Promise<IncomingMessage> {
  const { hostname, port } = new URL(engine.url);
  return new Promise((resolve, reject) => {
    const call = request({ hostname, port, method, path, headers, agent: false }, resolve);
    call.on("error", reject);
    outgoing.on("close", () => call.destroy());
    call.end(body);
  });
}

function pass(answer: IncomingMessage, outgoing: ServerResponse): void {
  outgoing.writeHead(answer.statusCode!, answer.headers);
  answer.on("error", () => outgoing.destroy()).pipe(outgoing);
}

async function textOf(answer: IncomingMessage): Promise<string> {
  let text = "";
  for await (const piece of answer.setEncoding("utf8")) text += piece as string;
  return text;
}

function noteOf(address: string): string {
  return join(tmpdir(), `stand-in-at-${address}`);
}

/**
 * Hangs the engine where P2P NCCL would: the communicator of an earlier process is used on its successor;
 * or the partner dies while a request with it runs, and the forward pass waits for it.
 */
function watchPartner(id: string, outgoing: ServerResponse): void {
  const at = /___decode_addr_(.*:\d+)_/.exec(id);
  if (!isP2p || role !== "prefill" || at === null) return;
  const address = at[1]!;
  if (!existsSync(noteOf(address))) return;
  const pid = readFileSync(noteOf(address), "utf8");
  const known = partners.get(address) ?? pid;
  partners.set(address, known);
  if (known !== pid) return sim.setFault("hang");
  const looking = setInterval(() => {
    if (isAlive(Number(pid))) return;
    clearInterval(looking);
    sim.setFault("hang");
  }, PARTNER_LOOK_MS);
  outgoing.on("close", () => clearInterval(looking));
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

function pingRouter(): void {
  const { proxy_ip, proxy_port, http_port } = transfer?.kv_connector_extra_config ?? {};
  if (!isP2p || proxy_ip === undefined) return;
  const dealer = new Dealer({ routingId: kvAddress, linger: 0 });
  dealer.connect(`tcp://${proxy_ip}:${proxy_port}`);
  const type = role === "prefill" ? "P" : "D";
  const message = Buffer.from(encode({ type, http_address: `${host}:${http_port}`, zmq_address: kvAddress }));
  const ping = (): void => void dealer.send(message).catch(() => {});
  ping();
  setInterval(ping, 3_000);
}
