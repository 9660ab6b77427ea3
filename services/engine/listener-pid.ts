// Which process listens on a port or a socket's path of this machine, so that a message can name it. Linux only, and only of processes
// that this user may look into.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** Undefined where it can't be found out. */
export function listenerPid(at: number | string): number | undefined {
  try {
    const inodes = new Set(typeof at === "string" ? atPath(at) : ["tcp", "tcp6"].flatMap((table) => atPort(table, at)));
    if (inodes.size === 0) return undefined;
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .find((pid) => holdsAny(pid, inodes));
  } catch {
    return undefined;
  }
}

/** Of listening sockets. */
function atPath(path: string): string[] {
  // Columns: address, references, protocol, flags (00010000: listening), type, state, inode, path.
  const rows = readFileSync("/proc/net/unix", "utf8").split("\n");
  return rows
    .map((row) => row.split(/\s+/))
    .filter((columns) => columns[3] === "00010000" && columns.slice(7).join(" ") === path)
    .map((columns) => `socket:[${columns[6]}]`);
}

function atPort(table: string, port: number): string[] {
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const rows = readFileSync(`/proc/net/${table}`, "utf8").trim().split("\n").slice(1);
  // Columns: index, local address, remote address, state (0A: listening), ..., the tenth is the inode.
  return rows
    .map((row) => row.trim().split(/\s+/))
    .filter((columns) => columns[3] === "0A" && columns[1]!.endsWith(`:${hexPort}`))
    .map((columns) => `socket:[${columns[9]}]`);
}

function holdsAny(pid: number, inodes: ReadonlySet<string>): boolean {
  const folder = `/proc/${pid}/fd`;
  try {
    return readdirSync(folder).some((fd) => inodes.has(readlinkSync(`${folder}/${fd}`)));
  } catch {
    // Another user's, or gone.
    return false;
  }
}
