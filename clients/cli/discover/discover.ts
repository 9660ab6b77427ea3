// `tandem discover`: listens to vLLM's own pings (P2P NCCL) and runs one wrapper process for each engine, for as long
// as the engine pings. A ping says where an engine is, not whether the engine works: the wrapper finds that out, and
// the doctor finds out whether the engine can be half of a pair.
import type { Readable } from "node:stream";
import { isLoopbackHost, splitAddress } from "../../../services/common/address.ts";
import { loadConfig } from "../../../services/common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../../../services/common/lifecycle.ts";
import { createLog } from "../../../services/common/log.ts";
import { listenForPings, type PingedEngine } from "../../../services/discovery/vllm-pings.ts";
import { startChild, TANDEM, type Child } from "../../common/child.ts";
import { discoverConfig } from "./config.ts";

export async function runDiscover(argv: readonly string[]): Promise<void> {
  const config = loadConfig(discoverConfig, { argv, env: process.env });
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM"), stopWithParent());
  const log = createLog({ name: "discover" });
  const wrappers = new Map<string, Child>();
  const env = { ...process.env, ...(config.token === "" ? {} : { TANDEM_TOKEN: config.token }) };
  if (!isLoopbackHost(splitAddress(config.listen).host)) {
    log.warn("pings are accepted from other machines, without authentication", {
      listen: config.listen,
      cure: "allow only the engines' network to reach this address",
    });
  }

  const adopt = (engine: PingedEngine): void => {
    const { role, httpAddress, kvAddress } = engine;
    const flags = [
      "--grpc.listen=127.0.0.1:0",
      `--registry.address=${config.registryAddress}`,
      `--engine.attach=http://${httpAddress}`,
      "--engine.kind=vllm",
      "--connector=p2p-nccl",
      `--engine.kv_address=${kvAddress}`,
      `--drain.grace_ms=${config.drainGraceMs}`,
      ...(config.model === undefined ? [] : [`--model=${config.model}`]),
    ];
    log.info("adopting an engine", { ...engine });
    const spec = { name: `${role} ${httpAddress}`, role, argv: [...TANDEM, role, ...flags], env };
    const wrapper = startChild(spec, passOn, (child, { how, restartInMs }) => {
      log.warn("the wrapper of an adopted engine died; restarting it", { wrapper: child.name, how, restartInMs });
      return true;
    });
    wrappers.set(httpAddress, wrapper);
  };
  const letGo = ({ httpAddress }: PingedEngine): void => {
    const wrapper = wrappers.get(httpAddress);
    wrappers.delete(httpAddress);
    void wrapper?.stop("SIGTERM");
  };

  const { listen, ageMs, limit } = config;
  await using listener = await listenForPings({ listen, ageMs, limit, log, came: adopt, left: letGo });
  process.once("exit", () => wrappers.forEach((wrapper) => wrapper.kill()));
  process.stdout.write(`discover ready on ${listener.address}\n`);
  await onceAborted(stop);
  await Promise.all(
    [...wrappers.values()].map((wrapper) => wrapper.stop(stop.reason === "SIGTERM" ? "SIGTERM" : "SIGINT")),
  );
}

/** Passes the output of a wrapper on as the output of this process. */
function passOn(stream: Readable, isError: boolean): void {
  stream.on("error", () => {});
  stream.pipe(isError ? process.stderr : process.stdout, { end: false });
}
