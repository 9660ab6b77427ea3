// An instance as the rest of the router sees it.
import type { Info, Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { RpcChannel } from "../../rpc/client.ts";
import type { ThinChannel } from "../../rpc/thin-client.ts";

/**
 * Why an instance gets legs or gets none. `silent`: nothing heard for too long. `unreachable`: a connection to it is
 * broken, or was never there. `failing`: it says it serves, and legs fail on it or stand still: its breaker is open.
 * `doubted`: its registry takes it for dead or gone, and it says that it serves; or it is not heard, for less long than
 * would make it `silent`. `left`: not registered any more, and here only until its last leg has ended.
 */
export type Condition =
  | "serving"
  | "starting"
  | "draining"
  | "stopped"
  | "silent"
  | "unreachable"
  | "failing"
  | "doubted"
  | "left";

/** Does not change, but for the counts of legs, which are those of the moment. */
export interface Member {
  readonly info: Info;
  /** Undefined until it has told. */
  readonly load: Load | undefined;
  /** When `load` came, by the pool's clock. 0 before. */
  readonly loadAtMs: number;
  readonly condition: Condition;
  /** Whether it gets new legs: `condition` is `serving`. A `reason` beside that says why it gets them all the same. */
  readonly eligible: boolean;
  /** Why not, for people. */
  readonly reason: string;
  /** Legs of this router that run on it now. */
  readonly legs: number;
  /** Legs this router ever gave it. */
  readonly legsTotal: bigint;
  /** `legs` when `load` came: what came or went since is not in the load's figures. */
  readonly legsAtLoad: number;
  /** Prompt tokens placed on it since `load` came, estimated. */
  readonly placedTokens: number;
  /** Prompt tokens that it works off in a millisecond, as seen on this router's legs. 0 before the first. */
  readonly tokensPerMs: number;
  /** Legs that failed by its fault in the last seconds, fading. */
  readonly suspicion: number;
  /** The token path. */
  readonly channel: ThinChannel;
  /** All other calls. */
  readonly control: RpcChannel;
}
