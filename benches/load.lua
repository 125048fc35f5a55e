-- What wrk sends: requests over random keys. All but the key is put together beforehand,
-- and nothing long is done in init(): wrk starts its first thread before the second's
-- init() and counts what it does meanwhile.
--   wrk -s load.lua URL -- METHOD KEYS PATH [BODY [CONTENT_TYPE [DEPTH]]]
-- `%s` in PATH and BODY stands for a key, another in each place; `%b` for one in base64; `%100v` for
-- a value of 100 bytes. DEPTH requests are sent at a time (pipelined).

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

local encoded, count, depth = false, 0, 1
-- What stands between the keys.
local parts = {}
function init(args)
   math.randomseed(seed)
   local method, path, body = args[1], args[3], args[4]
   count, depth = tonumber(args[2]), tonumber(args[6] or 1)
   if (args[5] or "") ~= "" then wrk.headers["Content-Type"] = args[5] end
   encoded = (path .. (body or "")):find("%b", 1, true) ~= nil
   local mark = encoded and base64("key:000000000000") or "key:000000000000"
   local function fill(template)
      return template and (template:gsub("%%(%d+)v", function(n) return ("v"):rep(tonumber(n)) end)
         :gsub("%%[sb]", mark))
   end
   -- Keys are all as long as the mark, so that the content length holds for each.
   local whole = wrk.format(method, fill(path), nil, body ~= "" and fill(body) or nil)
   local start = 1
   repeat
      local from, to = whole:find(mark, start, true)
      parts[#parts + 1] = whole:sub(start, (from or 0) - 1)
      start = (to or 0) + 1
   until not from
end

local function one()
   local out = { parts[1] }
   for at = 2, #parts do
      local key = string.format("key:%012d", math.random(0, count - 1))
      out[#out + 1] = encoded and base64(key) or key
      out[#out + 1] = parts[at]
   end
   return table.concat(out)
end

function request()
   if depth == 1 then return one() end
   local out = {}
   for at = 1, depth do out[at] = one() end
   return table.concat(out)
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d,"refused":%d,"broken":%d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      latency:percentile(99.9),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
