-- What wrk sends: requests over random keys, made before the clock starts, so that the
-- generator costs the same for every server.
--   wrk -s load.lua URL -- METHOD KEYS PATH [BODY [CONTENT_TYPE]]
-- `%s` in PATH and BODY stands for the key, `%b` for the key in base64.

local threads = 0
function setup(thread)
   threads = threads + 1
   thread:set("seed", threads)
end

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local function base64(text)
   local out = {}
   for at = 1, #text, 3 do
      local a, b, c = text:byte(at, at + 2)
      local bits = a * 65536 + (b or 0) * 256 + (c or 0)
      for place = 0, 3 do
         local six = math.floor(bits / 64 ^ (3 - place)) % 64
         local filled = place < 2 or (place == 2 and b) or (place == 3 and c)
         out[#out + 1] = filled and alphabet:sub(six + 1, six + 1) or "="
      end
   end
   return table.concat(out)
end

local requests, count = {}, 0
function init(args)
   math.randomseed(seed)
   local method, path, body = args[1], args[3], args[4]
   count = tonumber(args[2])
   if args[5] then wrk.headers["Content-Type"] = args[5] end
   local function fill(template, key)
      return template and (template:gsub("%%s", key):gsub("%%b", base64(key)))
   end
   for at = 0, count - 1 do
      local key = string.format("key:%012d", at)
      requests[at] = wrk.format(method, fill(path, key), nil, fill(body, key))
   end
end

function request()
   return requests[math.random(0, count - 1)]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
