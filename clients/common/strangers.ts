// What callers without credentials do to a gRPC port. A benchmark measures what that costs everybody else, and a test
// holds that no request fails.
import { connect, type Socket } from "node:net";
import { splitAddress } from "../../services/common/address.ts";
import { QUESTION, REFLECT, WATCH, rawCaller, type RawCaller } from "./raw-caller.ts";

/** A caller, or many, that have prepared what they do, so that their own work is over by then. */
export interface Strangers {
  strike(): void;
  /** Gives back what they hold open. */
  leave(): void;
}

async function callers(
  address: string,
  count: number,
  act: (caller: RawCaller) => void,
  window?: number,
): Promise<Strangers> {
  const all = await Promise.all(Array.from({ length: count }, () => rawCaller(address, window)));
  for (const caller of all) {
    caller.socket.cork();
    act(caller);
  }
  return {
    strike: () => all.forEach(({ socket }) => socket.uncork()),
    leave: () => all.forEach(({ socket }) => socket.destroy()),
  };
}

const each = (count: number, one: (index: number) => void): void => {
  for (let index = 0; index < count; index++) one(index);
};

function silence(address: string, count: number): Strangers {
  const sockets: Socket[] = [];
  return {
    strike: () => each(count, () => sockets.push(connect(splitAddress(address)).on("error", () => {}))),
    leave: () => sockets.forEach((socket) => socket.destroy()),
  };
}

/** By what they do. */
export const STRANGERS: Readonly<Record<string, (grpcAddress: string) => Promise<Strangers>>> = {
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
