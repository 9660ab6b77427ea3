// A client that stops reading, in processes of their own: what waits for it is bounded in router and instance, nobody else
// waits, and when it is cut the engine stops and nothing of it is left.
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance, Receipt } from "#gen/tandem/router/v1/router_pb.js";
import { tandemClient } from "../../clients/client/index.ts";
import { shippedModel } from "../../services/common/package-file.ts";
import { engineOf } from "../live/support/processes.ts";
import { askEngine } from "../support/engine-calls.ts";
import { skip } from "../support/skip.ts";
import { startTandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";

const LONG_MS = 60_000;
// Every chunk carries the model's name, so that a few hundred tokens fill the kernel's buffers on the way.
const MODEL = "m".repeat(40_000);
const BUFFER_BYTES = 65_536;
/** What the kernel takes for a connection whose other end reads nothing: 4 MB on Linux, and room. */
const KERNEL_BYTES = 12_000_000;

const KINDS = [
  {
    name: "the sim",
    engine: "sim",
    flags: ["--model", MODEL],
    tokens: 100_000,
    engineFlags: ["--model.max_len=200000", "--sim.decode_ms_per_token=2", "--inject"],
  },
  {
    name: "the embedded engine",
    engine: "embedded",
    flags: ["--served_name", MODEL],
    tokens: 1_900,
    engineFlags: ["--inject"],
  },
] as const;

async function silentClient(url: string, tokens: number): Promise<Socket> {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.pause();
  await once(socket, "connect");
  const body = JSON.stringify({ model: MODEL, prompt: "Tandem", max_tokens: tokens, ignore_eos: true, stream: true });
  socket.write(
    `POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  return socket;
}

for (const kind of KINDS) {
  describe(`a client that stops reading a long stream of ${kind.name}`, function () {
    this.timeout(3 * LONG_MS);

    it("is held back within bounds, delays no other client, and is cut without leftovers", async function () {
      if (kind.engine === "embedded" && shippedModel() === undefined) skip(this, "models/tandem-tiny has no GGUF file");
      await using tandem = await startTandem(
        ["--engine", kind.engine, ...kind.flags, ...(kind.engineFlags.length > 0 ? ["--", ...kind.engineFlags] : [])],
        {
          TANDEM_STREAM_BUFFER_BYTES: String(BUFFER_BYTES),
          TANDEM_CLIENT_STALL_MS: "1500",
        },
      );
      const router = tandemClient(tandem).router;
      const decode = async (): Promise<Instance> =>
        (await router.listInstances({})).instances.find(({ info }) => info!.role === Role.DECODE)!;
      const { info } = await decode();
      const { url: engineUrl } = engineOf(info!.pid);
      const engineState = async (): Promise<{
        running: number;
        kv_held: unknown[];
        streamed_bytes: number;
        outcomes: { aborted: number };
      }> => JSON.parse((await askEngine(engineUrl, "/sim/state")).text) as never;

      const slow = await silentClient(tandem.url, kind.tokens);
      await eventually("its leg runs", async () => (await decode()).load!.running === 1, LONG_MS);
      const receipts = async (): Promise<Receipt[]> => (await router.listRequests({ limit: 1_000 })).receipts;
      const cut = async (): Promise<Receipt | undefined> =>
        (await receipts()).find(({ errorCode }) => errorCode !== "");
      let others = 0;
      let receipt = await cut();
      for (; receipt === undefined; receipt = await cut()) {
        const answer = await fetch(`${tandem.url}/v1/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            model: MODEL,
            prompt: "Who else is there?",
            max_tokens: 8,
            ignore_eos: true,
            stream: true,
          }),
        });
        assert.match(await answer.text(), /"finish_reason":"length"[^]*data: \[DONE\]\n\n$/);
        others++;
        assert.ok(others < 500, "it is cut some time");
      }
      assert.match(receipt.error, /read next to nothing for 1500 ms and was disconnected/);
      assert.ok(others > 0, "others were served meanwhile");
      assert.ok(
        receipt.bodyBytes > 0n && receipt.bodyBytes < KERNEL_BYTES + BUFFER_BYTES,
        `${receipt.bodyBytes} bytes were written`,
      );
      await eventually("its slot is free", async () => {
        const { load } = await decode();
        return load!.running + load!.reserved + load!.kvOrphans === 0 && load!.freeSlots === info!.slotLimit;
      });
      const state = await engineState();
      const written = (await receipts()).reduce((sum, { bodyBytes }) => sum + Number(bodyBytes), 0);
      const held = state.streamed_bytes - written;
      assert.ok(held < KERNEL_BYTES, `router and instance took ${held} bytes more than they passed on`);
      assert.deepEqual([state.running, state.kv_held, state.outcomes.aborted], [0, [], 1]);
      slow.destroy();
    });
  });
}
