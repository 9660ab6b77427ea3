// Loaded into processes under test: SIGUSR2 sets their wall clock forward by an hour, the next one back, as a wrong time
// server does. Only Date moves; the monotonic clock can't.
const HOUR_MS = 3_600_000;
let shiftMs = 0;
const systemNow = Date.now.bind(Date);

Date.now = () => systemNow() + shiftMs;
process.on("SIGUSR2", () => {
  shiftMs = shiftMs === 0 ? HOUR_MS : 0;
});
