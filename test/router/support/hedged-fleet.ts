// Scripted instances behind a relay that hedges, on a clock that the test moves.
import type { RelayLimits } from "../../../services/router/config.ts";
import type { BreakerLimits } from "../../../services/router/pool/breaker.ts";
import { type ManualClock, manualClock } from "../../support/manual-clock.ts";
import { deploy, type Deployment } from "./deployment.ts";
import {
  startDecode,
  startPrefill,
  type DecodeLeg,
  type FakeDecode,
  type FakePrefill,
  type PrefillLeg,
} from "./fake-instance.ts";

export interface HedgedFleet extends AsyncDisposable {
  readonly tandem: Deployment;
  readonly clock: ManualClock;
  readonly decodes: readonly FakeDecode[];
  readonly prefills: readonly FakePrefill[];
}

export const prefillsAtOnce = (leg: PrefillLeg): void => leg.done({ ticket: "t" });

/** d1, d2 ... and p1, p2 ..., with hedging as shipped. */
export async function hedgedFleet(o: {
  readonly connector?: string;
  readonly decode: readonly ((leg: DecodeLeg) => void)[];
  readonly prefill?: readonly ((leg: PrefillLeg) => void)[];
  readonly limits?: Partial<RelayLimits>;
  readonly isCalm?: () => boolean;
  readonly breaker?: BreakerLimits;
  /** Of the probes. */
  readonly poolClock?: ManualClock;
}): Promise<HedgedFleet> {
  const clock = manualClock();
  const { connector = "p2p-zmq", prefill = [prefillsAtOnce, prefillsAtOnce] } = o;
  const info = (id: string) => ({ instanceId: id, connector, ...(connector === "nixl" ? { kvAddress: "" } : {}) });
  const decodes = await Promise.all(o.decode.map((auto, index) => startDecode(info(`d${index + 1}`), auto)));
  const prefills = await Promise.all(prefill.map((auto, index) => startPrefill(info(`p${index + 1}`), auto)));
  const tandem = await deploy([...prefills, ...decodes], {
    clock,
    limits: { hedgeRatio: 0.05, ...o.limits },
    ...(o.breaker === undefined ? {} : { breaker: o.breaker }),
    ...(o.poolClock === undefined ? {} : { poolClock: o.poolClock }),
    ...(o.isCalm === undefined ? {} : { isCalm: o.isCalm }),
  });
  return {
    tandem,
    clock,
    decodes,
    prefills,
    async [Symbol.asyncDispose]() {
      await tandem[Symbol.asyncDispose]();
      await Promise.all([...decodes, ...prefills].map((one) => one[Symbol.asyncDispose]()));
    },
  };
}
