// node:http without the rest of its module. Since Node 22.5 it exports WebSocket as well, and an `import` reads every export
// of a builtin: that loads all of undici, 13 MB resident, in a process that never opens a WebSocket.
const http = process.getBuiltinModule("node:http");

export const { createServer, STATUS_CODES } = http;
