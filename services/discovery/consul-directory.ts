// Who is there according to Consul, for the router. What it once knew it keeps while Consul is away: instances are lost
// when the router itself sees them fail, not when the registry does.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { scanArray } from "../common/json-body.ts";
import type { Log } from "../common/log.ts";
import { ConsulError, type ConsulAnswer, type ConsulClient } from "./consul-http.ts";
import { doubtOf, infoOf, serviceName, type HealthEntry } from "./consul-record.ts";
import { watchConsul } from "./consul-watch.ts";
import type { Directory, Doubt } from "./registry.ts";

export interface ConsulDirectoryOptions {
  readonly client: ConsulClient;
  readonly prefix: string;
  readonly log: Log;
  /** What each watch hears: undefined is an answer. */
  onHealth(watch: string, error: ConsulError | undefined): void;
  /** How long an entry that is missing in Consul is kept, if its instance lives. Default 30000. */
  readonly forgetMs?: number;
  readonly waitMs?: number;
}

interface Known {
  readonly info: Info;
  /** Its element of Consul's list, to know it again without reading it: of hundreds, few change at a time. */
  readonly text: string;
  readonly doubt: Doubt | undefined;
  /** Since when it is missing in Consul. */
  readonly missingSinceMs?: number;
}

const MISSING: Doubt = { kind: "missing", reason: "It is not registered in Consul any more." };

export function consulDirectory(o: ConsulDirectoryOptions): Directory {
  return {
    watch(onChange) {
      const stop = new AbortController();
      const forgetMs = o.forgetMs ?? 30_000;
      /** By instance id, of both roles. */
      const known = { prefill: new Map<string, Known>(), decode: new Map<string, Known>() };
      const complained = new Set<string>();
      let timer: NodeJS.Timeout | undefined;

      function tell(): void {
        const byAddress = new Map<string, Known>();
        for (const one of [...known.prefill.values(), ...known.decode.values()]) {
          const other = byAddress.get(one.info.grpcAddress);
          // Two entries of one address: the older one is what a killed instance left, or one not yet forgotten.
          if (other === undefined || other.info.startedUnixMs <= one.info.startedUnixMs)
            byAddress.set(one.info.grpcAddress, one);
        }
        const entries: Info[] = [];
        const doubts = new Map<string, Doubt>();
        for (const { info, doubt } of byAddress.values()) {
          entries.push(info);
          if (doubt !== undefined) doubts.set(info.instanceId, doubt);
        }
        onChange(entries, doubts);
      }

      function learn(role: "prefill" | "decode", answer: ConsulAnswer, gap: boolean): void {
        const byText = new Map<string, Known>();
        for (const one of known[role].values()) if (one.missingSinceMs === undefined) byText.set(one.text, one);
        const listed = new Map<string, Known>();
        let news = known[role].size === 0;
        for (const text of elementsOf(answer)) {
          const same = byText.get(text);
          if (same !== undefined) {
            listed.set(same.info.instanceId, same);
            continue;
          }
          news = true;
          const entry = JSON.parse(text) as HealthEntry;
          try {
            listed.set(entry.Service.ID, { info: infoOf(entry, role), text, doubt: doubtOf(entry) });
          } catch (error) {
            complain(entry.Service.ID, error as Error);
          }
        }
        const nowMs = performance.now();
        let missing = 0;
        for (const [id, one] of known[role]) {
          if (listed.has(id)) continue;
          // After an outage Consul may have forgotten everyone; they register again, and are as good as before till then.
          const doubt = gap ? undefined : one.missingSinceMs === undefined ? MISSING : one.doubt;
          const missingSinceMs = gap ? nowMs : (one.missingSinceMs ?? nowMs);
          listed.set(id, { info: one.info, text: one.text, doubt, missingSinceMs });
          news ||= one.missingSinceMs === undefined || one.doubt !== doubt;
          missing += 1;
        }
        if (gap && missing > 0)
          o.log.warn("instances are missing in Consul since it was away; kept while they live", { role, missing });
        known[role] = listed;
        if (news) tell();
        if (missing > 0) timer ??= setTimeout(forget, forgetMs / 4);
      }

      /** Consul answers, and still does not list them. */
      function forget(): void {
        timer = undefined;
        const nowMs = performance.now();
        let [forgotten, left] = [0, 0];
        for (const role of ["prefill", "decode"] as const) {
          for (const [id, { missingSinceMs }] of known[role]) {
            if (missingSinceMs === undefined) continue;
            // An outage makes it start anew.
            if (nowMs - missingSinceMs < forgetMs || down.has(role)) left += 1;
            else {
              known[role].delete(id);
              forgotten += 1;
            }
          }
        }
        if (forgotten > 0) tell();
        if (left > 0) timer = setTimeout(forget, forgetMs / 4);
      }

      function complain(id: string, error: Error): void {
        if (complained.has(id) || complained.size > 1_000) return;
        complained.add(id);
        o.log.warn("a service in Consul can't be used", { serviceId: id, because: error.message });
      }

      const down = new Set<string>();
      const watches = (["prefill", "decode"] as const).map((role) =>
        watchConsul({
          client: o.client,
          path: `/v1/health/service/${encodeURIComponent(serviceName(o.prefix, role))}`,
          policy: `service_prefix "${o.prefix}" { policy = "read" } and node_prefix "" { policy = "read" }`,
          onChange: (answer, gap) => learn(role, answer, gap),
          onUp: () => {
            down.delete(role);
            o.onHealth(role, undefined);
          },
          onDown: (error) => {
            down.add(role);
            o.onHealth(role, error);
          },
          stop: stop.signal,
          ...(o.waitMs === undefined ? {} : { waitMs: o.waitMs }),
        }),
      );
      onChange([]);
      return {
        async [Symbol.asyncDispose]() {
          stop.abort();
          clearTimeout(timer);
          await Promise.all(watches);
        },
      };
    },
  };
}

/** The elements of the list, unread. */
function elementsOf({ status, body }: ConsulAnswer): string[] {
  if (status === 404) return [];
  // Consul writes `null` for an empty list in some versions.
  if (body[0] !== OPENING_BRACKET) {
    if (body.toString().trim() === "null") return [];
    throw new ConsulError("refused", "Consul's answer is not a list: is this its HTTP port?");
  }
  return scanArray(body, 0, body.length).map(({ start, end }) => body.toString("utf8", start, end));
}

const OPENING_BRACKET = "[".charCodeAt(0);
