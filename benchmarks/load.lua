-- The script for wrk. It sends the bodies of a file in a cycle and counts only responses within a time window, so that
-- neither the warm-up nor the requests abandoned at the end distort the rate.
-- Arguments: the file (one body per line), the URL path, and the window's begin and end in seconds after the start.

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
  local responses, failures = 0, 0
  for _, thread in ipairs(threads) do
    responses = responses + thread:get("answered")
    failures = failures + thread:get("failed")
  end
  local errors = summary.errors
  print(string.format(
    '{"answered": %d, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}',
    responses, failures + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
