-- What wrk runs: sends the bodies of a file in turn, and counts the answers that fall into a window of time, so that
-- neither the first answers of an idle server nor the broken-off last ones distort the rate.
-- Arguments: the file (one body a line), the path, and the window's begin and end in seconds after the start.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } load_time;
  int clock_gettime(int clock, load_time *time);
]]
local MONOTONIC = 1
local time = ffi.new("load_time")

local function now()
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) * 1e-9
end

local threads = {}
local requests, sent = {}, 0

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  for body in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", args[2], { ["Content-Type"] = "application/json" }, body)
  end
  window_begin, window_end = now() + tonumber(args[3]), now() + tonumber(args[4])
  answered, failed = 0, 0
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function response(status)
  if status ~= 200 then failed = failed + 1 end
  local at = now()
  if at >= window_begin and at < window_end then answered = answered + 1 end
end

function done(summary, latency)
  local answers, failures = 0, 0
  for _, thread in ipairs(threads) do
    answers = answers + thread:get("answered")
    failures = failures + thread:get("failed")
  end
  local errors = summary.errors
  print(string.format(
    '{"answered": %d, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}',
    answers, failures + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
