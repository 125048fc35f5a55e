-- What wrk sends: requests over random keys. All but the key is put together beforehand,
-- and nothing long is done in init(): wrk starts its first thread before the second's
-- init() and counts what it does meanwhile.
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

local encoded = false
local count, parts = 0, {}
function init(args)
   math.randomseed(seed)
   local method, path, body = args[1], args[3], args[4]
   count = tonumber(args[2])
   if args[5] then wrk.headers["Content-Type"] = args[5] end
   encoded = (path .. (body or "")):find("%b", 1, true) ~= nil
   local mark = encoded and base64("key:000000000000") or "key:000000000000"
   local function fill(template)
      return template and (template:gsub("%%[sb]", mark))
   end
   -- Keys are all as long as the mark, so that the content length holds for each.
   local whole = wrk.format(method, fill(path), nil, fill(body))
   local from, to = whole:find(mark, 1, true)
   parts = { whole:sub(1, from - 1), whole:sub(to + 1) }
end

function request()
   local key = string.format("key:%012d", math.random(0, count - 1))
   if encoded then key = base64(key) end
   return parts[1] .. key .. parts[2]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
