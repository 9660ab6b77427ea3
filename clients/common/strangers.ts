// What callers without credentials do to a gRPC port. A benchmark measures what that costs everybody else, and a test
// holds that no request fails.
import { connect } from "node:net";
import { splitAddress } from "../../services/common/address.ts";
import { QUESTION, REFLECT, WATCH, rawCaller, type RawCaller } from "./raw-caller.ts";

/** Gives back what it holds open. */
export type Leave = () => void;

async function callers(address: string, count: number, act: (caller: RawCaller) => void, window?: number) {
  const all = await Promise.all(Array.from({ length: count }, () => rawCaller(address, window)));
  for (const caller of all) act(caller);
  return (): void => all.forEach(({ socket }) => socket.destroy());
}

const each = (count: number, one: (index: number) => void): void => {
  for (let index = 0; index < count; index++) one(index);
};

function silence(address: string, count: number): Leave {
  const sockets = Array.from({ length: count }, () => connect(splitAddress(address)).on("error", () => {}));
  return () => sockets.forEach((socket) => socket.destroy());
}

/** By what they do. Each resolves when it has sent everything. */
export const STRANGERS: Readonly<Record<string, (grpcAddress: string) => Promise<Leave>>> = {
  "200 connections that say nothing": async (address) => silence(address, 200),
  "3,000 connections that say nothing": async (address) => silence(address, 3_000),
  "1,000 calls that are reset at once, on one connection": (address) =>
    callers(address, 1, (caller) => each(1_000, (index) => callAndReset(caller, index))),
  "30,000 calls that are reset at once, on 30 connections": (address) =>
    callers(address, 30, (caller) => each(1_000, (index) => callAndReset(caller, index))),
  "2,400 questions whose answers are never read": (address) =>
    callers(address, 1, (caller) => each(2_400, (index) => caller.call(index, REFLECT, QUESTION)), 0),
  "20,000 watches of the health": (address) =>
    callers(address, 1, (caller) => {
      each(20_000, (index) => caller.call(index, WATCH, Buffer.alloc(0)));
      caller.read();
    }),
  "300 messages of 60 MB that are announced and never come": (address) =>
    callers(address, 1, (caller) => each(300, (index) => caller.announce(index, REFLECT, 60_000_000))),
};

function callAndReset(caller: RawCaller, index: number): void {
  caller.call(index, REFLECT);
  caller.reset(index);
}
