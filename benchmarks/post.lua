-- For wrk: posts the JSON file that follows "--" on its command line, over and over, and at the end
-- prints one line that counts the answers by status.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  ok, other = 0, 0
end

function response(status)
  if status == 200 then
    ok = ok + 1
  else
    other = other + 1
  end
end

function done(summary)
  local answered, refused = 0, 0
  for _, thread in ipairs(threads) do
    answered = answered + thread:get("ok")
    refused = refused + thread:get("other")
  end
  print(string.format("answers: %d with 200, %d with another status, in %d us", answered, refused, summary.duration))
end
