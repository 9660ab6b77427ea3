// RouterService shows the state of the router and its instances.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { EventEmitter } from "node:events";
import {
  type InstanceSchema,
  type ModelSchema,
  Outcome,
  type ReceiptSchema,
  RouterService,
  Standing,
} from "#gen/tandem/router/v1/router_pb.js";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, pause, until } from "../../common/clock.ts";
import type { Settings } from "../../common/config.ts";
import { ServiceError } from "../../common/errors.ts";
import { anySignal } from "../../common/lifecycle.ts";
import type { Log } from "../../common/log.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../common/version.ts";
import type { UnprovenEntry } from "../../discovery/registry.ts";
import { defineService, type RpcService } from "../../rpc/service.ts";
import type { ModelView, Pool, Reason, Seen } from "../pool/pool.ts";
import type { Probes } from "../probe/schedule.ts";
import type { RouterRegistry } from "../registry/router-registry.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { Receipts } from "../serving/receipts.ts";
import { diagnose, examineRegistry, examineUnproven } from "./diagnose.ts";

/** Shortest time between two messages to one watcher of instances. */
const WATCH_PAUSE_MS = 200;
const WATCHERS_LIMIT = 64;
const DEFAULT_LIST_LIMIT = 100;
const LIST_LIMIT = 1000;
const UINT32_MAX = 2 ** 32 - 1;

export interface RouterServiceOptions {
  readonly routerId: string;
  readonly pool: Pool;
  readonly receipts: Receipts;
  /** Used by the doctor. */
  readonly probes: Pick<Probes, "now">;
  readonly settings: Pick<Settings, "all">;
  readonly registry: Pick<RouterRegistry, "status" | "unproven">;
  /** Limits the calls that watch instances. Default 64. */
  readonly watcherLimit?: number;
  readonly clock: Clock;
  readonly log: Log;
}

export function routerService(o: RouterServiceOptions): RpcService {
  const { pool, receipts, clock, watcherLimit = WATCHERS_LIMIT } = o;
  let watchers = 0;

  const fleet = () => ({
    instances: [
      ...[...pool.view.prefill, ...pool.view.decode].map((seen) => instanceMessage(seen, clock.nowMs())),
      ...o.registry.unproven.map(unprovenMessage),
    ],
    models: [...pool.view.models.values()].map(modelMessage),
  });

  return defineService(
    RouterService,
    {
      listInstances: async () => ({ ...fleet(), routerId: o.routerId }),

      async *watchInstances(_request, context) {
        if (watchers >= watcherLimit) {
          const message = `Too many watchers: ${watchers} watch instances already. Try again later.`;
          throw new ServiceError("queue_full", message);
        }
        const stop = anySignal(context.signal, context.closing);
        const changes = new EventEmitter<{ change: [] }>();
        let changed = false;
        const off = pool.onChange(() => {
          changed = true;
          changes.emit("change");
        });
        watchers += 1;
        try {
          while (!stop.aborted) {
            changed = false;
            yield fleet();
            await pause(clock, WATCH_PAUSE_MS, stop);
            await until(changes, () => changed, stop);
          }
        } finally {
          watchers -= 1;
          off();
        }
      },

      listRequests: async ({ limit }) => ({
        receipts: receipts.list(limit === 0 ? DEFAULT_LIST_LIMIT : Math.min(limit, LIST_LIMIT)).map(receiptMessage),
      }),

      async *watchRequests(_request, context) {
        const stop = anySignal(context.signal, context.closing);
        for await (const { draft, missed } of receipts.watch(stop)) yield { receipt: receiptMessage(draft), missed };
      },

      async getReceipt({ requestId }) {
        const draft = receipts.find(requestId);
        if (draft === undefined) {
          const message = `Request \`${requestId}\` is neither running nor among the last that ended.`;
          throw new ServiceError("not_found", message);
        }
        return { receipt: receiptMessage(draft) };
      },

      async drainInstance({ instanceId, undrain, reason }) {
        o.log.info(undrain ? "instance undrained" : "instance drained", { instanceId, reason });
        return { remaining: await pool.drain(instanceId, undrain, reason) };
      },

      getConfig: async () => ({
        settings: [...o.settings.all].sort((a, b) => (a.key < b.key ? -1 : 1)),
        tandemVersion: TANDEM_VERSION,
        tandemCommit: TANDEM_COMMIT,
        registry: o.registry.status,
      }),

      diagnose: async ({ withoutProbes }, { signal }) => ({
        diagnoses: [
          ...examineRegistry(o.registry.status).map((finding) => ({ finding })),
          ...o.registry.unproven.map(examineUnproven),
          ...(await diagnose(pool, { ...(withoutProbes ? {} : { probes: o.probes }), signal })),
        ],
      }),
    },
    { access: "token" },
  );
}

/** The draft has the message's names. */
function receiptMessage(draft: ReceiptDraft): MessageInitShape<typeof ReceiptSchema> {
  const { outcome } = draft;
  return {
    ...draft,
    startedUnixMs: BigInt(draft.startedUnixMs),
    outcome: outcome === "running" ? Outcome.UNSPECIFIED : Outcome[outcome.toUpperCase() as Uppercase<typeof outcome>],
    bodyBytes: BigInt(draft.bodyBytes),
  };
}

/** @param nowMs By the pool's clock. */
function instanceMessage({ instance, standing }: Seen, nowMs: number): MessageInitShape<typeof InstanceSchema> {
  const { info, load, loadAtMs, legs, legsTotal } = instance;
  return {
    info,
    ...(load === undefined ? {} : { load }),
    eligible: standing.kind === "serves",
    reason: standing.text,
    standing:
      standing.kind === "serves" ? Standing.SERVING : Standing[standing.reason.toUpperCase() as Uppercase<Reason>],
    legs,
    legsTotal,
    loadAgeMs: load === undefined ? 0 : Math.min(UINT32_MAX, Math.max(0, Math.round(nowMs - loadAtMs))),
  };
}

/** Of an entry that is ignored, only its name in the registry is shown. */
function unprovenMessage({ instanceId, role, reason }: UnprovenEntry): MessageInitShape<typeof InstanceSchema> {
  const info = { instanceId, role: role === "prefill" ? Role.PREFILL : Role.DECODE };
  return { info, reason: `Not proven: ${reason}`, standing: Standing.UNTRUSTED };
}

function modelMessage(model: ModelView): MessageInitShape<typeof ModelSchema> {
  const lack = model.lack(false);
  const serving = (seen: readonly Seen[]): number => seen.filter(({ standing }) => standing.kind === "serves").length;
  return {
    name: model.name,
    ready: lack === undefined,
    lack: lack ?? "",
    prefillServing: serving(model.prefill),
    prefillKnown: model.prefill.length,
    decodeServing: serving(model.decode),
    decodeKnown: model.decode.length,
    slots: model.slots,
    maxModelLen: model.maxModelLen,
  };
}
