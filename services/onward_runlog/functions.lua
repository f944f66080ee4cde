#!lua name=onward1
-- Revision 3
-- The atomic writes of the run log, version 1. protos/README.md specifies them for executors in any language. The revision
-- goes up with every change: of two builds at one store, the functions of the newer one stay.
--
-- KEYS[1] is a partition's base name, e.g. "onward:{3}"; every name made here begins with it, so one call stays in one
-- slot. A run is named by its ref, "<namespace>/<run_id>". Times are milliseconds of this server's clock. All functions
-- but append and renew change one run, and each is one transition of the run's record together with its events, its
-- place in queue, timers, leases and listing, and one message on the wake channel.

local QUEUED, RUNNING, WAITING, CANCELLING, PAUSED, SUCCEEDED, FAILED, CANCELLED = 1, 2, 3, 4, 5, 6, 7, 8
local CAUSE_STARTED, CAUSE_LOST, CAUSE_HANDED_OVER, CAUSE_WOKEN, CAUSE_RESUMED, CAUSE_CANCELLED = 1, 2, 3, 4, 5, 6
local HINT_BYTES_MAX = 65536
local LANE = 2 ^ 42
-- A run whose executors died so often is given only to an executor that holds nothing else, from a queue of its own.
local DEATHS_SHARED = 2
local ALONE = '\0alone'

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function terminal(state) return state >= SUCCEEDED end

local function int(value) return string.format('%d', value) end

-- Protobuf, as much as is needed: the two fields that the log sets, and the message on the wake channel.
local function varint(n)
  if n < 128 then return string.char(n) end
  if n < 16384 then return string.char(n % 128 + 128, math.floor(n / 128)) end
  local bytes = {}
  while n >= 128 do
    bytes[#bytes + 1] = string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  bytes[#bytes + 1] = string.char(n)
  return table.concat(bytes)
end

local function bytes_field(tag, value) return tag .. varint(#value) .. value end

-- A Timestamp.
local function time_field(tag, seconds, micros)
  return bytes_field(tag, '\8' .. varint(seconds) .. '\16' .. varint(micros * 1000))
end

-- Wake: the runs that were appended to in this call. Field numbers as in onward_runlog/wake.proto.
local function publish(base, appended)
  if #appended > 0 then redis.call('PUBLISH', base .. ':wake', table.concat(appended)) end
end

-- Adds events to a run's log, and to `appended` what to publish, in pieces: joined once for all runs, they are copied
-- once. offset and attempt follow the writer's bytes, and in protobuf the last value of a field wins. from and through:
-- where in `events` they are, if not all.
local function write(base, ref, attempt, last, events, appended, from, through)
  local log = base .. ':' .. ref .. ':log'
  local tail = '\24' .. varint(attempt)
  from, through = from or 1, through or #events
  local bytes = 0
  for i = from, through do bytes = bytes + #events[i] end
  local shown = bytes <= HINT_BYTES_MAX
  local size, offset, told = 0, last, 0
  local head = #appended + 1
  local at = head
  appended[head] = ''
  for i = from, through do
    offset = offset + 1
    local event = events[i] .. '\8' .. varint(offset) .. tail
    redis.call('XADD', log, int(offset) .. '-0', 'e', event)
    size = size + #event
    if shown then
      local tag = '\34' .. varint(#event)
      told = told + #tag + #event
      appended[at + 1], appended[at + 2] = tag, event
      at = at + 2
    end
  end
  local hint = bytes_field('\10', ref) .. '\16' .. varint(last) .. '\24' .. varint(offset)
  appended[head] = '\10' .. varint(#hint + told) .. hint
  return offset, size
end

-- Puts a value into a memo. → by how much that has grown, which counts as the log's
local function remember(memo, name, value)
  if redis.call('HSETNX', memo, name, value) == 1 then return #name + #value end
  local before = redis.call('HSTRLEN', memo, name)
  redis.call('HSET', memo, name, value)
  return #value - before
end

local function index(base, ref, name) return base .. ':runs:' .. string.match(ref, '^[^/]*') .. ':' .. name end

local function move(base, ref, score, from, to)
  if from == to then return end
  local run_id = string.match(ref, '/(.*)$')
  redis.call('ZREM', index(base, ref, 's=' .. from), run_id)
  redis.call('ZADD', index(base, ref, 's=' .. to), score, run_id)
end

-- The name of the queue that a run waits in: its deployment's, or that of the runs which have to be alone.
local function line(deployment, deaths)
  return tonumber(deaths) >= DEATHS_SHARED and deployment .. ALONE or deployment
end

-- The queue of a deployment: higher priority first; within one, round-robin between fairness keys (start-time fair
-- queueing: a key's next run goes one place after its last, never before the place now served); within one, first come.
-- A key (with a priority: a lane) is remembered only while it has runs in line, so the hash is no longer than the queue.
local function enqueue(base, name, ref, priority, fairness, front)
  local queue, fair = base .. ':queue:' .. name, base .. ':fair:' .. name
  local place = 0
  if not front then
    local lane = priority .. '/' .. fairness
    local served = tonumber(redis.call('HGET', fair, 'served/' .. priority)) or 0
    local last = tonumber(redis.call('HGET', fair, 'last/' .. lane)) or 0
    place = math.max(served, last) + 1
    redis.call('HSET', fair, 'last/' .. lane, int(place))
    redis.call('HINCRBY', fair, 'line/' .. lane, 1)
  end
  redis.call('ZADD', queue, int((100 - priority) * LANE + place), ref)
  redis.call('SADD', base .. ':queues', name)
  redis.call('PUBLISH', base .. ':queued', name)
end

-- Takes a run out of its queue, if it is there, and returns its place; 0 is before all lanes.
local function dequeue(base, name, ref, priority, fairness)
  local queue, fair = base .. ':queue:' .. name, base .. ':fair:' .. name
  local score = redis.call('ZSCORE', queue, ref)
  if not score then return 0 end
  redis.call('ZREM', queue, ref)
  local place, lane = tonumber(score) % LANE, priority .. '/' .. fairness
  if place > 0 and redis.call('HINCRBY', fair, 'line/' .. lane, -1) <= 0 then
    redis.call('HDEL', fair, 'line/' .. lane, 'last/' .. lane)
  end
  if redis.call('EXISTS', queue) == 0 then
    redis.call('DEL', fair)
    redis.call('SREM', base .. ':queues', name)
  end
  return place
end

-- Gives a queued run to an executor. The lease begins here; RUNNING begins with the first append of the attempt.
local function give(base, ref, holder, ttl, alone)
  local key = base .. ':' .. ref .. ':run'
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'holder', holder, 'seq', 0, 'began', 0, 'alone', alone and 1 or 0)
  redis.call('ZADD', base .. ':leases', int(now_ms() + ttl), ref)
  return attempt
end

local DISPATCH = { 'run', 'input', 'attempt', 'cause', 'trace', 'deployment', 'log_id', 'last', 'state', 'deadline',
  'alone' }

local SHOWN = {
  'run', 'state', 'attempt', 'holder', 'deployment', 'log_id', 'last', 'start', 'end', 'expire', 'error', 'usage',
  'waiting', 'wake', 'continued',
}

local function dispatch(base, ref) return redis.call('HMGET', base .. ':' .. ref .. ':run', unpack(DISPATCH)) end

-- A run that is parked waits no longer: neither its timer nor a signal means it any more.
local function unpark(base, ref, key)
  redis.call('HDEL', key, 'waiting', 'wake', 'awaited')
  redis.call('ZREM', base .. ':timers', 'w:' .. ref)
end

-- Queues a parked run again, after the event that says so. It waits in its lane like any other: a thousand that wake at
-- once come one by one between the runs of everybody else.
local function awake(base, ref, key)
  local run = redis.call('HMGET', key, 'deployment', 'priority', 'fairness', 'score', 'state', 'deaths')
  unpark(base, ref, key)
  redis.call('HSET', key, 'state', QUEUED, 'cause', CAUSE_WOKEN)
  move(base, ref, run[4], run[5], QUEUED)
  enqueue(base, line(run[1], run[6]), ref, tonumber(run[2]), run[3], false)
end

-- The outbox that an entry belongs to. Hooks have one of their own: receivers that are slow are in no run's way.
local function outbox_of(base, id)
  local asked = string.match(id, '^errand%.') or string.match(id, '^ended:')
  return base .. (asked and ':outbox' or ':hooks')
end

local function record_of(base, id) return base .. ':' .. string.match(id, '^[^:]*:(.*)$') .. ':run' end

-- Puts into the partition's outbox what a Scheduler has to do at least once, in the call that makes it necessary. An id
-- is "<what happened>:<ref>"; what comes with it, if anything, is kept beside. The run's record counts what is not done:
-- it is needed for that, and is not deleted before.
local function post(base, id, what)
  local outbox = outbox_of(base, id)
  if what then redis.call('HSET', outbox .. ':what', id, what) end
  if redis.call('ZADD', outbox, int(now_ms()), id) == 1 then redis.call('HINCRBY', record_of(base, id), 'posted', 1) end
  redis.call('PUBLISH', base .. ':posted', id)
end

-- One entry for each of the run's hooks, so that none waits for another.
local function post_hooks(base, ref, kind, count)
  for hook = 1, tonumber(count or 0) do post(base, kind .. '.' .. hook .. ':' .. ref) end
end

-- The end of a run: nothing follows.
local function close(base, ref, key, state, from, score, expire)
  local now = now_ms()
  redis.call('HSET', key, 'state', state, 'holder', '', 'end', int(now), 'expire', int(now + expire))
  redis.call('ZREM', base .. ':leases', ref)
  redis.call('ZREM', base .. ':timers', 's:' .. ref, 'd:' .. ref)
  if from == WAITING then unpark(base, ref, key) end
  redis.call('ZADD', base .. ':timers', int(now + expire), 'x:' .. ref)
  move(base, ref, score, from, state)
  local told = redis.call('HMGET', key, 'kin', 'hooks_end')
  if told[1] == '1' then post(base, 'ended:' .. ref) end
  post_hooks(base, ref, 'end', told[2] or 0)
end

local function load(key, ...)
  local values = redis.call('HMGET', key, ...)
  if not values[1] then return nil end
  return values
end

local function staging(base, ref, token) return base .. ':' .. ref .. ':fork:' .. token end

-- stage: ref, token, ttl, first offset, n, n events, m, m pairs of memo name and value, k, k pairs of blob name and value,
--   s, s pairs of a signal's request_id and its place as `signal` keeps it
-- Brings a piece of what a run begins with to where submit finds it. The log sets the offset; the attempt stays.
-- → size of all events so far, and of all that lies beside them
local function stage(keys, argv)
  local prefix, ttl, offset, n = staging(keys[1], argv[1], argv[2]), argv[3], tonumber(argv[4]), tonumber(argv[5])
  local newest = redis.call('XREVRANGE', prefix .. ':log', '+', '-', 'COUNT', 1)[1]
  local last, size = newest and tonumber(string.match(newest[1], '^%d+')) or 0, 0
  if last < offset then
    for i = 1, n do
      local event = argv[5 + i] .. '\8' .. varint(offset + i - 1)
      redis.call('XADD', prefix .. ':log', int(offset + i - 1) .. '-0', 'e', event)
      size = size + #event
    end
  end
  local at = 6 + n
  for pair = at + 1, at + 2 * tonumber(argv[at]), 2 do
    size = size + remember(prefix .. ':memo', argv[pair], argv[pair + 1])
  end
  at = at + 1 + 2 * tonumber(argv[at])
  for pair = at + 1, at + 2 * tonumber(argv[at]), 2 do
    redis.call('SET', prefix .. ':blob:' .. argv[pair], argv[pair + 1], 'PX', ttl)
    if redis.call('SADD', prefix .. ':blobs', argv[pair]) == 1 then size = size + #argv[pair + 1] end
  end
  at = at + 1 + 2 * tonumber(argv[at])
  for pair = at + 1, at + 2 * tonumber(argv[at] or 0), 2 do  -- an older Scheduler brings no signals
    redis.call('HSET', prefix .. ':signals', argv[pair], argv[pair + 1])
  end
  redis.call('INCRBY', prefix .. ':size', size)
  for _, name in ipairs({ ':log', ':memo', ':blobs', ':signals', ':size' }) do redis.call('PEXPIRE', prefix .. name, ttl) end
  return tonumber(redis.call('GET', prefix .. ':size') or '0')
end

-- Makes what was staged a run's own.
-- → the newest offset, and the size of the log with what lies beside it; or nil where it is gone
local function unstage(base, ref, token)
  local from, to = staging(base, ref, token), base .. ':' .. ref
  local last, size = redis.call('XLEN', from .. ':log'), redis.call('GET', from .. ':size')
  if last == 0 or not size then return nil end
  local names = { ':log', ':memo', ':blobs', ':signals' }
  for _, name in ipairs(redis.call('SMEMBERS', from .. ':blobs')) do names[#names + 1] = ':blob:' .. name end
  for _, name in ipairs(names) do
    if redis.call('EXISTS', from .. name) == 1 then
      redis.call('RENAME', from .. name, to .. name)
      redis.call('PERSIST', to .. name)
    end
  end
  redis.call('DEL', from .. ':size')
  return last, tonumber(size)
end

-- The last second of the year 9999, behind which no time can be told.
local LAST_S = 253402300799

-- Writes into a run when it was accepted and, with a time limit (in ms, else 0), its deadline: by this clock, whatever
-- its Scheduler wrote, since this one judges them. In protobuf the last value of a field wins.
-- → the run, when it was accepted in µs, its deadline in ms
local function date(run, start, timeout, deadline)
  local t = redis.call('TIME')
  local s, micros = tonumber(t[1]), tonumber(t[2])
  run = run .. time_field('\130\1', s, micros)
  local created = int(s * 1000000 + micros)
  if timeout == 0 then return run, created, deadline end
  if start > s * 1000 + micros / 1000 then s, micros = math.floor(start / 1000), start % 1000 * 1000 end
  micros = micros + timeout % 1000 * 1000
  s = s + math.floor(timeout / 1000) + math.floor(micros / 1000000)
  micros = micros % 1000000
  if s >= LAST_S then s, micros = LAST_S, 0 end
  return run .. time_field('\170\1', s, micros), created, int(s * 1000 + math.floor(micros / 1000))
end

-- submit: ref, digest, run, input, deployment, priority, fairness, start (0: now), deadline (0: none), score, log_id,
--   trace, event, queue_max, holder ('' or who takes it if nobody waits), ttl, attempt and token of what was staged for
--   it (0 and '' for none: then the event is its first), kin (1 if other runs want to know of its end), hooks, how many
--   of them its end has, and each pause, n, names of n indexes, k, k entries for the outbox, time limit in ms (0: none),
--   with which score and deadline are set here
-- → {"new", attempt, or 0 while it waits, score: when it was accepted in µs} | {"replayed", SHOWN values} | {"reused"} |
--   {"full"} | {"unstaged"}
local function submit(keys, argv)
  local base, ref, digest = keys[1], argv[1], argv[2]
  local key = base .. ':' .. ref .. ':run'
  local known = load(key, 'digest', 'log_id', 'attempt', 'holder', 'began', 'score')
  if known then
    if known[1] ~= digest then return { 'reused' } end
    if known[2] ~= argv[11] then return { 'replayed', redis.call('HMGET', key, unpack(SHOWN)) } end
    -- Every call brings a log_id of its own: this is the first call again, whose reply was lost.
    local given = tonumber(known[3]) == tonumber(argv[17]) + 1 and known[4] ~= '' and known[4] == argv[15] and known[5] == '0'
    return { 'new', given and tonumber(known[3]) or 0, known[6] }
  end
  local deployment, priority, fairness = argv[5], tonumber(argv[6]), argv[7]
  local run, start, deadline, score = argv[3], tonumber(argv[8]), argv[9], argv[10]
  local posted = 24 + tonumber(argv[23])
  local k = tonumber(argv[posted] or 0)  -- an older Scheduler has none
  local timeout = argv[posted + k + 1]
  if timeout then run, score, deadline = date(run, start, tonumber(timeout), deadline) end  -- an older one sends no such
  local waiting = redis.call('ZCARD', base .. ':queue:' .. deployment)
  if waiting >= tonumber(argv[14]) then return { 'full' } end
  local appended, last, size = {}
  if argv[18] == '' then
    last, size = write(base, ref, 0, 0, { argv[13] }, appended)
  else
    last, size = unstage(base, ref, argv[18])
    if not last then return { 'unstaged' } end
  end
  local names = {}
  local run_id = string.match(ref, '/(.*)$')
  for i = 1, tonumber(argv[23]) do
    names[i] = argv[23 + i]
    redis.call('ZADD', index(base, ref, names[i]), score, run_id)
  end
  redis.call('ZADD', index(base, ref, 's=' .. QUEUED), score, run_id)
  redis.call('HSET', key, 'digest', digest, 'run', run, 'input', argv[4], 'deployment', deployment, 'priority',
    argv[6], 'fairness', fairness, 'score', score, 'log_id', argv[11], 'trace', argv[12], 'state', QUEUED,
    'attempt', argv[17], 'kin', argv[19], 'holder', '', 'seq', 0, 'committed', 0, 'began', 0, 'deaths', 0, 'cause', CAUSE_STARTED, 'last', last, 'bytes', size,
    'deadline', deadline, 'indexes', cmsgpack.pack(names))
  if argv[20] ~= '' then
    redis.call('HSET', key, 'hooks', argv[20], 'hooks_end', argv[21], 'hooks_pause', argv[22])
  end
  for i = 1, k do post(base, 'errand.0.0.' .. i .. ':' .. ref, argv[posted + i]) end
  if deadline ~= '0' then redis.call('ZADD', base .. ':timers', deadline, 'd:' .. ref) end
  local attempt = 0
  if start > now_ms() then
    redis.call('ZADD', base .. ':timers', argv[8], 's:' .. ref)
  elseif argv[15] ~= '' and waiting == 0 then
    attempt = give(base, ref, argv[15], tonumber(argv[16]), false)
  else
    enqueue(base, deployment, ref, priority, fairness, false)
  end
  publish(base, appended)
  return { 'new', attempt, score }
end

-- claim: name of a queue, holder, ttl, n → up to n of {ref, DISPATCH values}
-- A queue is named as its deployment, and that of the runs which have to be alone has ALONE behind that.
local function claim(keys, argv)
  local base, name, holder, ttl, n = keys[1], argv[1], argv[2], tonumber(argv[3]), tonumber(argv[4])
  local queue, fair = base .. ':queue:' .. name, base .. ':fair:' .. name
  local alone = string.sub(name, -#ALONE) == ALONE
  local taken = {}
  if n < 1 then return taken end
  for _, ref in ipairs(redis.call('ZRANGE', queue, 0, n - 1)) do
    local run = load(base .. ':' .. ref .. ':run', 'priority', 'fairness')
    if run then
      local place = dequeue(base, name, ref, run[1], run[2])
      if place > 0 and redis.call('EXISTS', queue) == 1 then
        redis.call('HSET', fair, 'served/' .. run[1], int(place))
      end
      give(base, ref, holder, ttl, alone)
      taken[#taken + 1] = { ref, dispatch(base, ref) }
    else
      dequeue(base, name, ref, '', '')  -- Somebody deleted it by hand.
    end
  end
  return taken
end

local function whole(...)
  for i = 1, select('#', ...) do
    if not string.match(select(i, ...) or '', '^%d+$') then return false end
  end
  return true
end

-- Whether the arguments of append add up. A call that is cut or miscounted is refused before anything is written: half
-- of it in a log would be there for good. So it is with park and lose, which executors call, too.
local ENDINGS = { [''] = true, ['5'] = true, ['6'] = true, ['7'] = true, ['8'] = true }

local function adds_up(argv)
  if not whole(argv[1], argv[2], argv[3]) then return false end
  local at = 4
  while at <= #argv do
    local ending, used, n = argv[at + 3] or '', argv[at + 6], tonumber(argv[at + 7])
    if ending ~= '' then ending = string.gsub(ending, '^6 [%w_-]+$', '6') end
    local m = n and n >= 0 and tonumber(argv[at + 8 + n])
    if not m or m < 0 or m % 1 ~= 0 or not ENDINGS[ending] or (ending ~= '' and n == 0) then return false end
    if used ~= '' and not string.match(used, '^%d+ %d+ %d+ %d+ %d+$') then return false end
    local k = tonumber(argv[at + 9 + n + 2 * m])
    if not k or k < 0 or k % 1 ~= 0 then return false end
    at = at + 10 + n + 2 * m + k
  end
  return at == #argv + 1
end

-- Adds up two usages: input, output and cached input tokens, cost in millionths of a dollar, calls.
local function sum(before, more)
  if not before then return more end
  local amounts = {}
  for amount in string.gmatch(before, '%d+') do amounts[#amounts + 1] = tonumber(amount) end
  local at = 0
  return (string.gsub(more, '%d+', function(amount)
    at = at + 1
    return int(amounts[at] + tonumber(amount))
  end))
end

-- What an attempt's first append does beside: the run is RUNNING from here on.
-- → its state
local function begin(base, ref, key, state)
  redis.call('HSET', key, 'began', 1)
  redis.call('HSETNX', key, 'start', int(now_ms()))
  if state ~= QUEUED then return state end
  redis.call('HSET', key, 'state', RUNNING)
  move(base, ref, redis.call('HGET', key, 'score'), QUEUED, RUNNING)
  return RUNNING
end

-- append: events_max, bytes_max, expire, then for each run: ref, attempt, sequence, end ('' or the state that ends the
--   attempt; behind SUCCEEDED and a space the run_id of the run that it goes on as), output, error, usage ('' or five amounts that are added to the run's), n, n events, m, m pairs of memo
--   name and value, k, k entries for the outbox
-- → for each run {"ok" | "fenced" | "closed" | "jump" | "full" | "cancelling", state, attempt, last_offset, bytes}. Those are the log's, and of
--   the memo and the blobs beside it.
local function append(keys, argv)
  local base, events_max, bytes_max, expire = keys[1], tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3])
  local at, replies, appended = 4, {}, {}
  if not adds_up(argv) then return redis.error_reply('ERR append: the arguments do not add up') end
  while at <= #argv do
    local ref, attempt, seq, ending = argv[at], tonumber(argv[at + 1]), tonumber(argv[at + 2]), nil
    local successor
    if argv[at + 3] ~= '' then
      successor = string.match(argv[at + 3], '^6 (.+)$')
      ending = successor and SUCCEEDED or tonumber(argv[at + 3])
    end
    local output, failure, used, n = argv[at + 4], argv[at + 5], argv[at + 6], tonumber(argv[at + 7])
    local first = at + 8
    local memo = first + n
    local m = tonumber(argv[memo])
    local posted = memo + 1 + 2 * m
    local k = tonumber(argv[posted])
    at = posted + 1 + k
    local key = base .. ':' .. ref .. ':run'
    local run = load(key, 'state', 'attempt', 'holder', 'seq', 'last', 'bytes')
    local reply
    if not run then
      reply = { 'fenced', 0, 0, 0, 0 }
    else
      local state, held, last, size = tonumber(run[1]), tonumber(run[2]), tonumber(run[5]), tonumber(run[6])
      local expected = tonumber(run[4])
      if attempt == held and seq == expected and seq > 0 then
        reply = { 'ok', state, held, tonumber(redis.call('HGET', key, 'committed')), size }
      elseif terminal(state) then
        reply = { 'closed', state, held, last, size }
      elseif attempt ~= held or run[3] == '' then
        reply = { 'fenced', state, held, last, size }
      elseif seq ~= expected + 1 then
        reply = { 'jump', state, held, last, size }
      elseif state == CANCELLING and ending == PAUSED then
        reply = { 'cancelling', state, held, last, size } -- or a cancellation that was answered would be undone
      elseif not ending and (last + n > events_max or size > bytes_max) then
        reply = { 'full', state, held, last, size }
      else
        if n > 0 then
          local added
          last, added = write(base, ref, attempt, last, argv, appended, first, memo - 1)
          size = size + added
        end
        for pair = memo + 1, memo + 2 * m, 2 do
          size = size + remember(base .. ':' .. ref .. ':memo', argv[pair], argv[pair + 1])
        end
        if k > 0 then redis.call('HSET', key, 'kin', 1) end
        for i = 1, k do post(base, 'errand.' .. attempt .. '.' .. seq .. '.' .. i .. ':' .. ref, argv[posted + i]) end
        local through = int(last)
        redis.call('HSET', key, 'seq', seq, 'committed', through, 'last', through, 'bytes', int(size))
        if expected == 0 then state = begin(base, ref, key, state) end
        if used ~= '' then redis.call('HSET', key, 'usage', sum(redis.call('HGET', key, 'usage'), used)) end
        if ending then
          if output ~= '' then redis.call('HSET', key, 'output', output) end
          if failure ~= '' then redis.call('HSET', key, 'error', failure) end
          if successor then redis.call('HSET', key, 'continued', successor) end
          if terminal(ending) then
            close(base, ref, key, ending, state, redis.call('HGET', key, 'score'), expire)
          else
            redis.call('HSET', key, 'state', ending, 'holder', '')
            redis.call('ZREM', base .. ':leases', ref)
            move(base, ref, redis.call('HGET', key, 'score'), state, ending)
            post_hooks(base, ref, 'pause.' .. int(last), redis.call('HGET', key, 'hooks_pause') or 0)
          end
          state = ending
        end
        reply = { 'ok', state, held, last, size }
      end
    end
    replies[#replies + 1] = reply
  end
  publish(base, appended)
  return replies
end

-- park: ref, attempt, sequence, last (the newest offset that the attempt knows), events_max, bytes_max, event, reason,
--   wake_in (milliseconds until a timer wakes it; "" for no timer), n, n names of signals that wake it
-- "stale": somebody else has written, or has asked for the run's end; nothing was taken.
-- → {"ok" | "stale" | "fenced" | "closed" | "jump" | "full", state, attempt, last_offset, bytes}
local function park(keys, argv)
  local base, ref, attempt, seq = keys[1], argv[1], tonumber(argv[2]), tonumber(argv[3])
  if not whole(argv[5], argv[6], argv[9] ~= '' and argv[9] or '0', argv[10]) or #argv ~= 10 + tonumber(argv[10]) then
    return redis.error_reply('ERR park: the arguments do not add up')
  end
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'attempt', 'holder', 'seq', 'committed', 'last', 'bytes', 'score')
  if not run then return { 'fenced', 0, 0, 0, 0 } end
  local state, held, last, size = tonumber(run[1]), tonumber(run[2]), tonumber(run[6]), tonumber(run[7])
  local expected = tonumber(run[4])
  if attempt == held and seq == expected then return { 'ok', state, held, tonumber(run[5]), size } end
  if terminal(state) then return { 'closed', state, held, last, size } end
  if attempt ~= held or run[3] == '' then return { 'fenced', state, held, last, size } end
  if seq ~= expected + 1 then return { 'jump', state, held, last, size } end
  if state ~= RUNNING or last ~= tonumber(argv[4]) then return { 'stale', state, held, last, size } end
  if last >= tonumber(argv[5]) or size > tonumber(argv[6]) then return { 'full', state, held, last, size } end
  local appended, added = {}
  last, added = write(base, ref, attempt, last, { argv[7] }, appended)
  size = size + added
  redis.call('HSET', key, 'state', WAITING, 'holder', '', 'seq', seq, 'committed', int(last), 'last', int(last), 'bytes',
    int(size), 'waiting', argv[8])
  redis.call('ZREM', base .. ':leases', ref)
  if argv[9] ~= '' then
    local wake = int(now_ms() + tonumber(argv[9]))
    redis.call('HSET', key, 'wake', wake)
    redis.call('ZADD', base .. ':timers', wake, 'w:' .. ref)
  end
  local n, names = tonumber(argv[10]), {}
  for i = 1, n do names[i] = argv[10 + i] end
  if n > 0 then redis.call('HSET', key, 'awaited', cmsgpack.pack(names)) end
  move(base, ref, run[8], state, WAITING)
  publish(base, appended)
  return { 'ok', WAITING, held, last, size }
end

local function awaits(packed, name)
  for _, awaited in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if awaited == name then return true end
  end
  return false
end

-- renew: ttl, then for each run: ref, attempt, holder → for each run {1 | 0, state, last_offset}
local function renew(keys, argv)
  local base, expiry, replies = keys[1], int(now_ms() + tonumber(argv[1])), {}
  for at = 2, #argv, 3 do
    local ref = argv[at]
    local run = load(base .. ':' .. ref .. ':run', 'state', 'attempt', 'holder', 'last')
    if run and run[2] == argv[at + 1] and run[3] == argv[at + 2] then
      redis.call('ZADD', base .. ':leases', expiry, ref)
      replies[#replies + 1] = { 1, tonumber(run[1]), tonumber(run[4]) }
    else
      replies[#replies + 1] = { 0, run and tonumber(run[1]) or 0, run and tonumber(run[4]) or 0 }
    end
  end
  return replies
end

-- cancel: ref, expire, event into CANCELLING, event into CANCELLED, grace
-- What has run before is dispatched to clean up, whether or not somebody holds it now. What has not, or is PAUSED, ends
-- at once; and so does what nobody has come to clean up, when this is asked again after the grace.
-- → {"missing"} | {"ok", holder, attempt, record, 1 if this call ended the run}
local function cancel(keys, argv)
  local base, ref, expire = keys[1], argv[1], tonumber(argv[2])
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'attempt', 'holder', 'last', 'bytes', 'score', 'deployment', 'priority', 'fairness',
    'start', 'deaths', 'cancelled')
  if not run then return { 'missing' } end
  local state, holder, now, ended = tonumber(run[1]), run[3], now_ms(), 0
  local asked = state == CANCELLING
  if not terminal(state) and not (asked and (holder ~= '' or now < tonumber(run[12] or 0) + tonumber(argv[5]))) then
    local appended = {}
    local cleans_up = holder ~= '' or (run[10] and state ~= PAUSED and not asked)
    local last, added = write(base, ref, 0, tonumber(run[4]), { cleans_up and argv[3] or argv[4] }, appended)
    redis.call('HSET', key, 'last', int(last), 'bytes', int(tonumber(run[5]) + added))
    local name = line(run[7], run[11])
    if cleans_up then
      redis.call('HSET', key, 'state', CANCELLING, 'cancelled', int(now))
      move(base, ref, run[6], state, CANCELLING)
      if holder == '' then
        redis.call('HSET', key, 'cause', CAUSE_CANCELLED)
        if state == WAITING then unpark(base, ref, key) end
        if not redis.call('ZSCORE', base .. ':queue:' .. name, ref) then
          enqueue(base, name, ref, tonumber(run[8]), run[9], true)
        end
      end
    else
      dequeue(base, name, ref, run[8], run[9])
      close(base, ref, key, CANCELLED, state, run[6], expire)
      ended = 1
    end
    publish(base, appended)
  end
  return { 'ok', holder, tonumber(run[2]), redis.call('HGETALL', key), ended }
end

-- lose: ref, attempt, why ("lost" | "expired" | "handed_over" | "refused"), expire, deaths_max, event into QUEUED, event
--   into CANCELLED, event into PAUSED, error of PAUSED, event into CANCELLING
-- "expired" holds only if the lease has run out. An attempt that never began leaves no trace in the log. Only "lost" and
-- "expired" are deaths: who seemed to refuse a run and began it all the same, its answer being lost, did not die. The
-- death that makes deaths_max is one that the run met alone: others may be another run's doing.
-- → {"stale"} | {"ok", state, record if this call ended the run}
local function lose(keys, argv)
  local base, ref, attempt, why, expire = keys[1], argv[1], tonumber(argv[2]), argv[3], tonumber(argv[4])
  if not whole(argv[4], argv[5]) or #argv ~= 10 then
    return redis.error_reply('ERR lose: the arguments do not add up')
  end
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'attempt', 'holder', 'last', 'bytes', 'score', 'deployment', 'priority', 'fairness',
    'began', 'deaths', 'alone', 'start')
  if not run or tonumber(run[2]) ~= attempt or run[3] == '' then return { 'stale' } end
  if why == 'expired' then
    local expiry = tonumber(redis.call('ZSCORE', base .. ':leases', ref))
    if expiry and expiry > now_ms() then return { 'stale' } end
  end
  local state, appended, began = tonumber(run[1]), {}, run[10] == '1'
  local deaths, deaths_max = tonumber(run[11]), tonumber(argv[5])
  if began and (why == 'lost' or why == 'expired') then
    deaths = run[12] == '1' and deaths_max or math.min(deaths + 1, DEATHS_SHARED)
  end
  local function become(new, event)
    local last, added = write(base, ref, 0, tonumber(run[4]), { event }, appended)
    redis.call('HSET', key, 'last', int(last), 'bytes', int(tonumber(run[5]) + added), 'state', new)
    move(base, ref, run[6], state, new)
    state = new
  end
  redis.call('ZREM', base .. ':leases', ref)
  redis.call('HSET', key, 'holder', '', 'deaths', deaths)
  local cancelling = state == CANCELLING
  if cancelling and (deaths >= deaths_max or not run[13]) then
    become(CANCELLED, argv[7])
    close(base, ref, key, CANCELLED, CANCELLED, run[6], expire)
    publish(base, appended)
    return { 'ok', CANCELLED, redis.call('HGETALL', key) }
  elseif deaths >= deaths_max then
    become(PAUSED, argv[8])
    redis.call('HSET', key, 'error', argv[9])
    post_hooks(base, ref, 'pause.' .. int(tonumber(run[4]) + 1), redis.call('HGET', key, 'hooks_pause') or 0)
  else
    if cancelling then
      redis.call('HSET', key, 'cause', CAUSE_CANCELLED)
      if began then become(CANCELLING, argv[10]) end
    elseif began then
      redis.call('HSET', key, 'cause', why == 'handed_over' and CAUSE_HANDED_OVER or CAUSE_LOST)
      become(QUEUED, argv[6])
    end
    enqueue(base, line(run[7], deaths), ref, tonumber(run[8]), run[9], true)
  end
  publish(base, appended)
  return { 'ok', state }
end

-- resume: ref, deployment ('' keeps it), event into QUEUED, events and bytes that the log may hold
-- Who was resumed or woken, and still goes on from there, is a repeat's answer; with another deployment it is no repeat.
-- → {"missing"} | {"state", state} | {"full"} | {"ok", record}
local function resume(keys, argv)
  local base, ref, deployment = keys[1], argv[1], argv[2]
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'cause', 'deployment', 'last', 'bytes', 'score', 'priority', 'fairness')
  if not run then return { 'missing' } end
  local state, last, size = tonumber(run[1]), tonumber(run[4]), tonumber(run[5])
  if deployment == '' then deployment = run[3] end
  if state ~= PAUSED then
    if state == WAITING then  -- It would go on by itself, and may look now whether it still has to wait.
      local appended = {}
      local added
      last, added = write(base, ref, 0, last, { argv[3] }, appended)
      redis.call('HSET', key, 'last', int(last), 'bytes', int(size + added), 'deployment', deployment)
      awake(base, ref, key)
      publish(base, appended)
      return { 'ok', redis.call('HGETALL', key) }
    end
    local cause = tonumber(run[2])
    local repeated = (cause == CAUSE_RESUMED or cause == CAUSE_WOKEN) and deployment == run[3] and
      (state == QUEUED or state == RUNNING)
    if not repeated then return { 'state', state } end
    return { 'ok', redis.call('HGETALL', key) }
  end
  if last > tonumber(argv[4]) or size > tonumber(argv[5]) then return { 'full' } end
  local appended, added = {}
  last, added = write(base, ref, 0, last, { argv[3] }, appended)
  redis.call('HDEL', key, 'error')
  redis.call('HSET', key, 'last', int(last), 'bytes', int(size + added), 'state', QUEUED, 'cause', CAUSE_RESUMED,
    'deployment', deployment, 'deaths', 0)
  move(base, ref, run[6], PAUSED, QUEUED)
  enqueue(base, deployment, ref, tonumber(run[7]), run[8], false)
  publish(base, appended)
  return { 'ok', redis.call('HGETALL', key) }
end

-- adopt: ref, from, to, event into QUEUED, event into CANCELLING
-- Moves a run that stands in line from one deployment to another: to the front there if that is where it stood, else to
-- the end of its lane. The event is of the state that it has, and says why.
-- → {"stale"}: it does not stand in line there | {"ok"}
local function adopt(keys, argv)
  local base, ref, from, to = keys[1], argv[1], argv[2], argv[3]
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'deployment', 'last', 'bytes', 'priority', 'fairness', 'deaths')
  if not run or run[2] ~= from or from == to then return { 'stale' } end
  local name = line(from, run[7])
  if not redis.call('ZSCORE', base .. ':queue:' .. name, ref) then return { 'stale' } end
  local front = dequeue(base, name, ref, run[5], run[6]) == 0
  local appended = {}
  local event = tonumber(run[1]) == CANCELLING and argv[5] or argv[4]
  local last, added = write(base, ref, 0, tonumber(run[3]), { event }, appended)
  redis.call('HSET', key, 'last', int(last), 'bytes', int(tonumber(run[4]) + added), 'deployment', to)
  enqueue(base, line(to, run[7]), ref, tonumber(run[5]), run[6], front)
  publish(base, appended)
  return { 'ok' }
end

-- expel: ref, expire, event into FAILED, error: the run's deadline has passed
-- → {"stale"} | {"ok", holder, attempt, record}
local function expel(keys, argv)
  local base, ref = keys[1], argv[1]
  local key = base .. ':' .. ref .. ':run'
  local run = load(key, 'state', 'attempt', 'holder', 'last', 'bytes', 'score', 'deployment', 'deadline', 'priority',
    'fairness', 'deaths')
  if not run or terminal(tonumber(run[1])) then
    redis.call('ZREM', base .. ':timers', 'd:' .. ref)
    return { 'stale' }
  end
  local deadline = tonumber(run[8])
  if deadline == 0 or deadline > now_ms() then return { 'stale' } end
  local appended = {}
  local last, added = write(base, ref, 0, tonumber(run[4]), { argv[3] }, appended)
  redis.call('HSET', key, 'last', int(last), 'bytes', int(tonumber(run[5]) + added), 'error', argv[4])
  dequeue(base, line(run[7], run[11]), ref, run[9], run[10])
  close(base, ref, key, FAILED, tonumber(run[1]), run[6], tonumber(argv[2]))
  publish(base, appended)
  return { 'ok', run[3], tonumber(run[2]), redis.call('HGETALL', key) }
end

-- signal: ref, request_id ('' for none), digest, event, events_max, bytes_max, name, event into QUEUED (for a run that
--   is parked and waits for the name)
-- → {"missing" | "ended" | "reused" | "full" | "ok" | "replayed", offset, state, holder, attempt}
local function signal(keys, argv)
  local base, ref, request_id, digest = keys[1], argv[1], argv[2], argv[3]
  local key, signals = base .. ':' .. ref .. ':run', base .. ':' .. ref .. ':signals'
  local run = load(key, 'state', 'attempt', 'holder', 'last', 'bytes', 'awaited')
  if not run then return { 'missing' } end
  local state, last, size = tonumber(run[1]), tonumber(run[4]), tonumber(run[5])
  if request_id ~= '' then
    local known = redis.call('HGET', signals, request_id)
    if known then
      local offset, first = string.match(known, '^(%d+):(.*)$')
      if first ~= digest then return { 'reused' } end
      return { 'replayed', tonumber(offset), state, run[3], tonumber(run[2]) }
    end
  end
  if terminal(state) then return { 'ended', 0, state } end
  if last >= tonumber(argv[5]) or size > tonumber(argv[6]) then return { 'full' } end
  local appended, wakes, offset = {}, state == WAITING and awaits(run[6], argv[7]), last + 1
  local added
  last, added = write(base, ref, 0, last, wakes and { argv[4], argv[8] } or { argv[4] }, appended)
  redis.call('HSET', key, 'last', int(last), 'bytes', int(size + added))
  if request_id ~= '' then redis.call('HSET', signals, request_id, int(offset) .. ':' .. digest) end
  if wakes then
    awake(base, ref, key)
    state = QUEUED
  end
  publish(base, appended)
  return { 'ok', offset, state, run[3], tonumber(run[2]) }
end

-- blob: ref, attempt, name, value → {"ok" | "fenced" | "closed"}
local function blob(keys, argv)
  local base, ref = keys[1], argv[1]
  local run = load(base .. ':' .. ref .. ':run', 'attempt', 'holder', 'state')
  if run and terminal(tonumber(run[3])) then return { 'closed' } end
  if not run or run[1] ~= argv[2] or run[2] == '' then return { 'fenced' } end
  redis.call('SET', base .. ':' .. ref .. ':blob:' .. argv[3], argv[4])
  if redis.call('SADD', base .. ':' .. ref .. ':blobs', argv[3]) == 1 then
    redis.call('HINCRBY', base .. ':' .. ref .. ':run', 'bytes', #argv[4])
  end
  return { 'ok' }
end

-- How much longer a run is kept, each time, that somebody has not been told of yet.
local UNTOLD = 60000

-- sweep: limit, event into QUEUED. Queues runs whose start is due and parked ones whose timer is, deletes runs that are past their retention, and tells what is for a
-- Scheduler to decide.
-- → {now, {ref, attempt, holder, … of leases that have run out}, {ref, … of passed deadlines}, {deployment, length, …},
--    time of the next timer or 0}
local function sweep(keys, argv)
  local base, limit, now = keys[1], tonumber(argv[1]), now_ms()
  local timers = base .. ':timers'
  local expired, passed, queues, appended = {}, {}, {}, {}
  for _, ref in ipairs(redis.call('ZRANGEBYSCORE', base .. ':leases', '-inf', int(now), 'LIMIT', 0, limit)) do
    local run = load(base .. ':' .. ref .. ':run', 'attempt', 'holder')
    if run then
      expired[#expired + 1] = ref
      expired[#expired + 1] = tonumber(run[1])
      expired[#expired + 1] = run[2]
    else
      redis.call('ZREM', base .. ':leases', ref)
    end
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', int(now), 'LIMIT', 0, limit)) do
    local kind, ref = string.sub(member, 1, 1), string.sub(member, 3)
    local prefix = base .. ':' .. ref
    local key = prefix .. ':run'
    if kind == 'd' then
      passed[#passed + 1] = ref
    elseif kind == 's' then
      redis.call('ZREM', timers, member)
      local run = load(key, 'state', 'deployment', 'priority', 'fairness')
      if run and tonumber(run[1]) == QUEUED then enqueue(base, run[2], ref, tonumber(run[3]), run[4], false) end
    elseif kind == 'w' then
      redis.call('ZREM', timers, member)
      local run = load(key, 'state', 'last', 'bytes')
      if run and tonumber(run[1]) == WAITING then
        local last, added = write(base, ref, 0, tonumber(run[2]), { argv[2] }, appended)
        redis.call('HSET', key, 'last', int(last), 'bytes', int(tonumber(run[3]) + added))
        awake(base, ref, key)
      end
    elseif kind == 'x' and tonumber(redis.call('HGET', key, 'posted') or 0) > 0 then
      redis.call('ZADD', timers, int(now + UNTOLD), member)
    elseif kind == 'x' then
      redis.call('ZREM', timers, member)
      local run = load(key, 'state', 'indexes')
      if run then
        local run_id = string.match(ref, '/(.*)$')
        for _, name in ipairs(cmsgpack.unpack(run[2])) do redis.call('ZREM', index(base, ref, name), run_id) end
        redis.call('ZREM', index(base, ref, 's=' .. run[1]), run_id)
      end
      for _, name in ipairs(redis.call('SMEMBERS', prefix .. ':blobs')) do redis.call('UNLINK', prefix .. ':blob:' .. name) end
      redis.call('UNLINK', key, prefix .. ':log', prefix .. ':memo', prefix .. ':signals', prefix .. ':blobs')
    end
  end
  for _, deployment in ipairs(redis.call('SMEMBERS', base .. ':queues')) do
    queues[#queues + 1] = deployment
    queues[#queues + 1] = redis.call('ZCARD', base .. ':queue:' .. deployment)
  end
  publish(base, appended)
  local next = redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')
  return { int(now), expired, passed, queues, next[2] or '0' }
end

-- take: "outbox" or "hooks", limit, busy: what is due there is left to the caller for so many milliseconds
-- → {id, what came with it or '', how often it was taken, …}
local function take(keys, argv)
  local outbox, now, taken = keys[1] .. ':' .. argv[1], now_ms(), {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', outbox, '-inf', int(now), 'LIMIT', 0, argv[2])) do
    redis.call('ZADD', outbox, int(now + tonumber(argv[3])), id)
    taken[#taken + 1] = id
    taken[#taken + 1] = redis.call('HGET', outbox .. ':what', id) or ''
    taken[#taken + 1] = redis.call('HINCRBY', outbox .. ':tries', id, 1)
  end
  return taken
end

-- settle: id, delay: an entry is done with (''), or to be taken again after so many milliseconds
local function settle(keys, argv)
  local id = argv[1]
  local outbox = outbox_of(keys[1], id)
  if argv[2] ~= '' then return redis.call('ZADD', outbox, 'XX', int(now_ms() + tonumber(argv[2])), id) end
  redis.call('HDEL', outbox .. ':what', id)
  redis.call('HDEL', outbox .. ':tries', id)
  local removed, key = redis.call('ZREM', outbox, id), record_of(keys[1], id)
  if removed == 1 and redis.call('EXISTS', key) == 1 then redis.call('HINCRBY', key, 'posted', -1) end
  return removed
end

-- held: holder → {ref, attempt, … of every run of the partition that this executor holds}
local function held(keys, argv)
  local base, found = keys[1], {}
  for _, ref in ipairs(redis.call('ZRANGE', base .. ':leases', 0, -1)) do
    local run = load(base .. ':' .. ref .. ':run', 'attempt', 'holder')
    if run and run[2] == argv[1] then
      found[#found + 1] = ref
      found[#found + 1] = tonumber(run[1])
    end
  end
  return found
end

-- So many deployments are remembered, and every one that had an executor of late: each build is one, and all are read.
local DEPLOYMENTS_MAX = 200
local OF_LATE = 86400000

-- register: executor_id, executor, deployment, workflows, ttl. KEYS[1] is the registry's base name.
-- → milliseconds at which the deployment was first seen
local function register(keys, argv)
  local base, now = keys[1], now_ms()
  redis.call('HSET', base .. ':executors', argv[1], argv[2])
  redis.call('ZADD', base .. ':alive', int(now + tonumber(argv[5])), argv[1])
  redis.call('ZADD', base .. ':served', int(now), argv[3])
  local known = redis.call('HGET', base .. ':workflows', argv[3])
  redis.call('HSETNX', base .. ':deployments', argv[3], int(now))
  if known ~= argv[4] then
    redis.call('HSET', base .. ':workflows', argv[3], argv[4])
    redis.call('PUBLISH', base .. ':wake', argv[3])
  end
  local surplus = redis.call('HLEN', base .. ':deployments') - DEPLOYMENTS_MAX
  if surplus > 0 then
    local left = redis.call('ZRANGEBYSCORE', base .. ':served', '-inf', int(now - OF_LATE), 'LIMIT', 0, surplus)
    for _, name in ipairs(left) do
      redis.call('ZREM', base .. ':served', name)
      redis.call('HDEL', base .. ':deployments', name)
      redis.call('HDEL', base .. ':workflows', name)
    end
  end
  return redis.call('HGET', base .. ':deployments', argv[3])
end

-- promote: deployment → its new place in the order of deployments
local function promote(keys, argv)
  local base, now = keys[1], now_ms()
  for _, seen in ipairs(redis.call('HVALS', base .. ':deployments')) do now = math.max(now, tonumber(seen) + 1) end
  redis.call('HSET', base .. ':deployments', argv[1], int(now))
  redis.call('PUBLISH', base .. ':wake', argv[1])
  return int(now)
end

-- executors: → the registrations that live, each an Executor message; the dead are dropped
local function executors(keys)
  local base = keys[1]
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':alive', '-inf', int(now_ms()))) do
    redis.call('ZREM', base .. ':alive', id)
    redis.call('HDEL', base .. ':executors', id)
  end
  return redis.call('HVALS', base .. ':executors')
end

-- unregister: executor_id
local function unregister(keys, argv)
  redis.call('ZREM', keys[1] .. ':alive', argv[1])
  return redis.call('HDEL', keys[1] .. ':executors', argv[1])
end

-- What components keep across runs: a value, or who makes it. KEYS[1] is the partition of the name, "<namespace>/<digest>".
-- An owner is a call and its attempt, "<attempt> <call>": a later attempt of the same call takes over from an earlier one.
local function cache_names(base, name) return base .. ':cache:' .. name, base .. ':making:' .. name end

-- cache_take: name, call, attempt, ttl → {"kept", value} | {"make"}: for ttl, and again with each repeat | {"wait"}
local function cache_take(keys, argv)
  local value_key, making_key = cache_names(keys[1], argv[1])
  local value = redis.call('GET', value_key)
  if value then return { 'kept', value } end
  local maker = redis.call('GET', making_key)
  if maker then
    local attempt, call = string.match(maker, '^(%d+) (.*)$')
    if call ~= argv[2] or tonumber(attempt) > tonumber(argv[3]) then return { 'wait' } end
  end
  redis.call('SET', making_key, argv[3] .. ' ' .. argv[2], 'PX', argv[4])
  return { 'make' }
end

-- cache_keep: name, call, attempt, value, ttl → {"ok"}
local function cache_keep(keys, argv)
  local value_key, making_key = cache_names(keys[1], argv[1])
  redis.call('SET', value_key, argv[4], 'PX', argv[5])
  if redis.call('GET', making_key) == argv[3] .. ' ' .. argv[2] then redis.call('DEL', making_key) end
  return { 'ok' }
end

-- cache_release: name, call, attempt → {"ok"}
local function cache_release(keys, argv)
  local _, making_key = cache_names(keys[1], argv[1])
  if redis.call('GET', making_key) == argv[3] .. ' ' .. argv[2] then redis.call('DEL', making_key) end
  return { 'ok' }
end

-- Permits: at most so many of a name at once, first come, first served. KEYS[1] is the partition of the name,
-- "<namespace>/<digest>". Who asks is known by an id that it never uses again. All of them have a lease; who has one and
-- no place in line holds a permit. The keys live as long as leases may: only permit_take makes any.
local function permit_keys(base, name)
  local prefix = base .. ':permits:' .. name
  return prefix .. ':leases', prefix .. ':line', prefix .. ':asked'
end

-- Forgets who let its lease run out, and gives what is free to the first in line. `asking` hears of it by the reply.
local function permit_grant(leases, line, asked, asking)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', int(now_ms()), 'LIMIT', 0, 1000)) do
    redis.call('ZREM', leases, id)
    redis.call('ZREM', line, id)
    redis.call('HDEL', asked, id)
  end
  local held = redis.call('ZCARD', leases) - redis.call('ZCARD', line)
  while true do
    local id = redis.call('ZRANGE', line, 0, 0)[1]
    if not id then return end
    local limit, channel = string.match(redis.call('HGET', asked, id), '^(%d+) (.*)$')
    if held >= tonumber(limit) then return end
    redis.call('ZREM', line, id)
    held = held + 1
    if not asking[id] then redis.call('PUBLISH', channel, id) end
  end
end

-- permit_take: name, ttl, channel, then for each: id, limit, "1" if it holds one already → for each: 1 it holds one, 0 it
-- waits. For ttl, and again with each repeat. Who says that it holds one does, whatever was forgotten: it runs.
local function permit_take(keys, argv)
  local leases, line, asked = permit_keys(keys[1], argv[1])
  local expiry = int(now_ms() + tonumber(argv[2]))
  local asking = {}
  for i = 4, #argv, 3 do
    local id = argv[i]
    asking[id] = true
    if argv[i + 2] == '1' then
      redis.call('ZREM', line, id)
    elseif not redis.call('ZSCORE', leases, id) then
      local last = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2]
      redis.call('ZADD', line, int((tonumber(last) or 0) + 1), id)
    end
    redis.call('ZADD', leases, expiry, id)
    redis.call('HSET', asked, id, argv[i + 1] .. ' ' .. argv[3])
  end
  permit_grant(leases, line, asked, asking)
  local replies = {}
  for i = 4, #argv, 3 do replies[#replies + 1] = redis.call('ZSCORE', line, argv[i]) and 0 or 1 end
  for _, key in ipairs({ leases, line, asked }) do redis.call('PEXPIREAT', key, int(tonumber(expiry) + 60000)) end
  return replies
end

-- permit_release: name, then ids, of who holds or waits → {"ok"}
local function permit_release(keys, argv)
  local leases, line, asked = permit_keys(keys[1], argv[1])
  for i = 2, #argv do
    redis.call('ZREM', leases, argv[i])
    redis.call('ZREM', line, argv[i])
    redis.call('HDEL', asked, argv[i])
  end
  permit_grant(leases, line, asked, {})
  return { 'ok' }
end

-- A provider's limits as the whole fleet shares them. KEYS[1] is the partition of the budget's name. For tokens and for
-- requests there is a bucket: it fills by the limit in each window and holds a little less than one, so that an estimate
-- that is too low is no refusal. Calls that cannot go stand in line by start-time fair queueing over the tenants: a
-- call's tag is where its tenant's last one ended, never before the first in line, in shares of the limit.
local HEADROOM = 0.95
local LATE = 3000          -- who does not come at the time that it was told is passed by
local FORGOTTEN = 600000   -- and after this its place is gone; as is what is known of a call that has gone
local BACKOFF, BACKOFF_MAX = 1000, 60000
local MEAN_WEIGHT = 0.1

local function budget_open(base, name)
  local key = base .. ':budget:' .. name
  local known = redis.call('HGETALL', key)
  local budget = { key = key, now = now_ms(), ttl = 0 }
  for i = 1, #known, 2 do budget[known[i]] = tonumber(known[i + 1]) end
  budget['until'], budget.v, budget.mean = budget['until'] or 0, budget.v or 0, budget.mean or 1
  -- It may lie ahead to the end of a refusal, and no further: this clock may have been set back.
  if budget.at then budget.at = math.min(budget.at, math.max(budget.now, budget['until'])) end
  return budget
end

-- Takes the limits in force, and fills the buckets: of what is declared and what was learned the slower one holds.
local function budget_fill(budget)
  local limits = {}
  for _, kind in ipairs { 'tokens', 'requests' } do
    local limit, window = budget[kind .. '_declared'], budget.window
    local learned, over = budget[kind .. '_learned'], budget[kind .. '_window']
    if learned and (not limit or learned / over < limit / window) then limit, window = learned, over end
    if limit then
      local full, rate = math.max(limit * HEADROOM, math.min(limit, 1)), limit / window
      local level = budget[kind] or full
      if budget.now > (budget.at or budget.now) then level = level + (budget.now - budget.at) * rate end
      budget[kind] = math.min(level, full)
      limits[kind] = { full = full, rate = rate }
      budget.ttl = math.max(budget.ttl, 2 * window)
    end
  end
  -- A refusal sets the time of the levels to when it ends.
  budget.at = math.max(budget.now, budget.at or 0)
  return limits
end

local function budget_close(budget)
  local key, ttl = budget.key, math.max(budget.ttl, budget['until'] - budget.now) + FORGOTTEN
  local fields = {}
  for _, field in ipairs { 'tokens', 'requests', 'at', 'v', 'mean', 'until', 'refusals', 'tokens_declared', 'window',
    'requests_declared', 'tokens_learned', 'tokens_window', 'requests_learned', 'requests_window' } do
    if budget[field] then
      fields[#fields + 1] = field
      fields[#fields + 1] = string.format('%.17g', budget[field])
    end
  end
  redis.call('HSET', key, unpack(fields))
  for _, name in ipairs { key, key .. ':line', key .. ':tenants', key .. ':calls', key .. ':due' } do
    if redis.call('PTTL', name) < ttl then redis.call('PEXPIRE', name, int(ttl)) end
  end
end

-- A call: "<state> <attempt> <asked> <tokens> <share> <tag> <tenant>". States: w in line, l late, g gone to the provider.
local function budget_call(budget, id)
  local packed = redis.call('HGET', budget.key .. ':calls', id)
  if not packed then return nil end
  local state, attempt, asked, tokens, share, tag, tenant = string.match(packed, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return { id = id, state = state, attempt = tonumber(attempt), asked = tonumber(asked), tokens = tonumber(tokens),
    share = tonumber(share), tag = tonumber(tag), tenant = tenant }
end

local function budget_keep(budget, call, due)
  local packed = string.format('%s %d %.0f %.0f %.17g %.17g ', call.state, call.attempt, call.asked, call.tokens,
    call.share, call.tag)
  redis.call('HSET', budget.key .. ':calls', call.id, packed .. call.tenant)
  redis.call('ZADD', budget.key .. ':due', int(due), call.id)
  local member = int(call.tokens) .. ' ' .. call.id
  if call.state == 'w' then
    redis.call('ZADD', budget.key .. ':line', string.format('%.17g', call.tag), member)
  else
    redis.call('ZREM', budget.key .. ':line', member)
  end
end

local function budget_forget(budget, call)
  redis.call('HDEL', budget.key .. ':calls', call.id)
  redis.call('ZREM', budget.key .. ':due', call.id)
  redis.call('ZREM', budget.key .. ':line', int(call.tokens) .. ' ' .. call.id)
end

-- Moves where a tenant's next call stands: it paid so much more or less than its last one had put aside.
local function budget_move(budget, tenant, share)
  local last = tonumber(redis.call('ZSCORE', budget.key .. ':tenants', tenant) or budget.v)
  redis.call('ZADD', budget.key .. ':tenants', string.format('%.17g', math.max(budget.v, last + share)), tenant)
end

local function budget_expire(budget)
  local due = redis.call('ZRANGEBYSCORE', budget.key .. ':due', '-inf', int(budget.now), 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    local call = budget_call(budget, id)
    if call and call.state == 'w' then
      call.state = 'l'
      budget_keep(budget, call, budget.now + FORGOTTEN)
    elseif call then
      if call.state == 'l' then budget_move(budget, call.tenant, -call.share) end
      budget_forget(budget, call)
    end
  end
end

-- When a call can go, in ms from now; what those before it in line need stays for them, as far as the buckets hold it.
-- Beyond a full bucket the line is not read but counted, however long it is: they need what those before them do.
local LINE_PAGE = 100

local function budget_before(budget, limits, call)
  local key, tag = budget.key .. ':line', '(' .. string.format('%.17g', call.tag)
  local tokens, read = 0, 0
  repeat
    local before = redis.call('ZRANGEBYSCORE', key, '-inf', tag, 'LIMIT', read, LINE_PAGE)
    for _, member in ipairs(before) do tokens = tokens + tonumber(string.match(member, '^%d+')) end
    read = read + #before
    if #before < LINE_PAGE then return tokens, read end
  until (not limits.tokens or tokens > limits.tokens.full) and (not limits.requests or read > limits.requests.full)
  local all = redis.call('ZCOUNT', key, '-inf', tag)
  return tokens * all / read, all
end

local function budget_delay(budget, limits, call)
  local tokens, requests = limits.tokens and math.min(call.tokens, limits.tokens.full) or call.tokens, 1
  local before, count = budget_before(budget, limits, call)
  tokens, requests = tokens + before, requests + count
  local delay = math.max(0, budget['until'] - budget.now)
  for kind, needed in pairs { tokens = tokens, requests = requests } do
    local limit = limits[kind]
    -- Nobody waits for more than a full bucket: from then on what flows in is lost.
    if limit and budget[kind] < math.min(needed, limit.full) then
      delay = math.max(delay, budget.at - budget.now + (needed - budget[kind]) / limit.rate)
    end
  end
  return math.ceil(delay)
end

-- budget_reserve: name, call, attempt, tenant, tokens, limit of tokens, limit of requests (or "" each), window
--   → {"free"}: nothing limits it | {"go"} | {"wait", ms}: ask again then
local function budget_reserve(keys, argv)
  local budget = budget_open(keys[1], argv[1])
  local id, attempt, tenant, asked = argv[2], tonumber(argv[3]), argv[4], tonumber(argv[5])
  budget.tokens_declared, budget.requests_declared = tonumber(argv[6]), tonumber(argv[7])
  budget.window = tonumber(argv[8])
  if not budget.tokens_declared then redis.call('HDEL', budget.key, 'tokens_declared') end
  if not budget.requests_declared then redis.call('HDEL', budget.key, 'requests_declared') end
  local limits = budget_fill(budget)
  if not next(limits) and budget['until'] <= budget.now then return { 'free' } end
  budget_expire(budget)
  local call = budget_call(budget, id)
  if call and call.attempt > attempt then return { 'wait', BACKOFF_MAX } end
  if call and call.state == 'g' and call.attempt == attempt then return { 'go' } end
  if not call or call.state == 'g' then
    call = { id = id, asked = asked, tokens = math.max(1, math.ceil(asked * budget.mean)), tenant = tenant, share = 0 }
    if limits.tokens then
      -- One that is larger than all goes when all is there. It may be a slip: nobody waits more than a window for it.
      call.tokens = math.min(call.tokens, math.ceil(2 * limits.tokens.full))
      call.share = call.tokens / limits.tokens.full
    end
    if limits.requests then call.share = math.max(call.share, 1 / limits.requests.full) end
    call.tag = math.max(budget.v, tonumber(redis.call('ZSCORE', budget.key .. ':tenants', tenant) or 0))
    redis.call('ZADD', budget.key .. ':tenants', string.format('%.17g', call.tag + call.share), tenant)
  end
  call.attempt = attempt
  local delay = budget_delay(budget, limits, call)
  if delay > 0 then
    call.state = 'w'
    budget_keep(budget, call, budget.now + delay + LATE)
    budget.ttl = math.max(budget.ttl, delay)
    budget_close(budget)
    return { 'wait', delay }
  end
  call.state = 'g'
  for kind, needed in pairs { tokens = call.tokens, requests = 1 } do
    if limits[kind] then budget[kind] = budget[kind] - needed end
  end
  budget_keep(budget, call, budget.now + FORGOTTEN)
  -- Where the line is now: not beyond who still waits, or tenants would lose what they have not been given yet.
  local first = redis.call('ZRANGE', budget.key .. ':line', 0, 0, 'WITHSCORES')
  local place = math.min(call.tag, tonumber(first[2] or call.tag))
  if place > budget.v then
    budget.v = place
    redis.call('ZREMRANGEBYSCORE', budget.key .. ':tenants', '-inf', string.format('(%.17g', place))
  end
  budget_close(budget)
  return { 'go' }
end

-- budget_settle: name, call, attempt, tokens ("" as reserved), requests (0 or 1) → {"ok"} | {"gone"}
local function budget_settle(keys, argv)
  local budget = budget_open(keys[1], argv[1])
  local call = budget_call(budget, argv[2])
  if not call or call.attempt ~= tonumber(argv[3]) then return { 'gone' } end
  local limits = budget_fill(budget)
  budget_forget(budget, call)
  if call.state ~= 'g' then
    budget_move(budget, call.tenant, -call.share)
  else
    local tokens, share = tonumber(argv[4]) or call.tokens, 0
    if limits.tokens then
      -- What a provider says that it used, it may say wrongly: no more than a window is owed.
      local full, spent = limits.tokens.full, math.min(tokens, 2 * limits.tokens.full)
      budget.tokens = math.max(-full, math.min(full, budget.tokens + call.tokens - spent))
      share = spent / full
    end
    if limits.requests then
      budget.requests = math.min(limits.requests.full, budget.requests + 1 - tonumber(argv[5]))
      share = math.max(share, tonumber(argv[5]) / limits.requests.full)
    end
    if share ~= call.share then budget_move(budget, call.tenant, share - call.share) end
    if argv[4] ~= '' and tokens > 0 then
      local ratio = math.min(10, tokens / math.max(1, call.asked))
      budget.mean = math.max(0.001, budget.mean + MEAN_WEIGHT * (ratio - budget.mean))
      budget.refusals = 0
    end
  end
  budget_close(budget)
  return { 'ok' }
end

-- budget_learn: name, refused (0 or 1), after in ms ("" not told), then for tokens and for requests: limit, window, what
--   remains ("" each), and for how long all of them are to ask, in ms → {"ok"}
local function budget_learn(keys, argv)
  local budget = budget_open(keys[1], argv[1])
  local said = { tokens = { argv[4], argv[5], argv[6] }, requests = { argv[7], argv[8], argv[9] } }
  for kind, one in pairs(said) do
    if one[1] ~= '' then budget[kind .. '_learned'], budget[kind .. '_window'] = tonumber(one[1]), tonumber(one[2]) end
  end
  local limits = budget_fill(budget)
  for kind, one in pairs(said) do
    if limits[kind] and one[3] ~= '' then budget[kind] = math.min(budget[kind], tonumber(one[3])) end
  end
  if argv[2] == '1' then
    local after = tonumber(argv[3])
    if not after and budget['until'] <= budget.now then
      -- Refusals of one moment count once.
      budget.refusals = (budget.refusals or 0) + 1
      after = math.min(BACKOFF_MAX, BACKOFF * 2 ^ (budget.refusals - 1))
    end
    budget['until'] = math.max(budget['until'], budget.now + (after or 0))
    for kind in pairs(limits) do budget[kind] = math.min(budget[kind], kind == 'requests' and 1 or 0) end
    budget.at = math.max(budget.at, budget['until'])
  end
  local ttl = math.max(tonumber(argv[10]), budget['until'] - budget.now)
  budget.ttl = math.max(budget.ttl, ttl)
  budget_close(budget)
  local listed = keys[1] .. ':budgets'
  redis.call('ZREMRANGEBYSCORE', listed, '-inf', int(budget.now))
  redis.call('ZADD', listed, int(budget.now + ttl), argv[1])
  if redis.call('PTTL', listed) < ttl then redis.call('PEXPIRE', listed, int(ttl)) end
  redis.call('PUBLISH', 'onward:{registry}:budgets', int(ttl) .. ' ' .. argv[1])
  return { 'ok' }
end

-- Whether anybody gets an answer from a provider, as the whole fleet finds it. KEYS[1] is the partition of the breaker's name.
-- closed: everybody asks. open: one asks at a time, the others wait. ramp: it answers again, and more and more may ask.
-- Failures open it that come one after another, with no answer between them from anybody: if some are answered, tries do.
local BREAKS, BREAKS_MAX = 3, 1000
local BLIP = 10000                        -- what was over sooner was hardly an outage: it takes twice the failures from then on,
local BLIP_KNOWN = 600000                 -- for so long
local PROBE, PROBE_MAX = 1000, 30000      -- from one probe to the next
local PROBE_LEASE = 15000
local ASKS = 20                           -- of those who wait, one asks in this time, or fewer: see breaker_ask
local ASKS_MAX = 300000                   -- but everybody in this
local RAMP_MIN, RAMP_MAX = 1000, 20000    -- as long as the outage, within these
local RAMP_RATE, DOUBLINGS = 0.005, 10    -- calls in a millisecond when it begins, and how often that doubles
local AHEAD = { at = 0, since = 0, filled = 0, least_at = 0, probe_at = 1.2 * PROBE_MAX, probe_until = PROBE_LEASE,
  ask_at = ASKS_MAX }

local function breaker_open(base, name)
  local key = base .. ':breaker:' .. name
  local known = redis.call('HGETALL', key)
  local breaker = { key = key, base = base, name = name, now = now_ms() }
  for i = 1, #known, 2 do
    local field, value = known[i], known[i + 1]
    breaker[field] = (field == 'state' or field == 'probe') and value or tonumber(value)
  end
  breaker.failures = breaker.failures or 0
  -- No time lies further ahead than it was ever set: this clock may have been set back.
  for field, ahead in pairs(AHEAD) do
    if breaker[field] then breaker[field] = math.min(breaker[field], breaker.now + ahead) end
  end
  if breaker.state == 'ramp' and breaker.now >= breaker.at + breaker.ramp then breaker.state = 'closed' end
  if breaker.least and breaker.now > breaker.least_at + BLIP_KNOWN then breaker.least = nil end
  return breaker
end

local function breaker_close(breaker)
  local fields = {}
  for _, field in ipairs { 'state', 'at', 'since', 'failures', 'least', 'least_at', 'interval', 'probe_at', 'probe',
    'probe_until', 'ask_at', 'ramp', 'level', 'filled' } do
    local value = breaker[field]
    if value then
      fields[#fields + 1] = field
      fields[#fields + 1] = type(value) == 'number' and string.format('%.17g', value) or value
    end
  end
  redis.call('DEL', breaker.key)
  redis.call('HSET', breaker.key, unpack(fields))
  redis.call('PEXPIRE', breaker.key, FORGOTTEN)
end

-- Tells all executors that they have to ask before they ask the provider.
local function breaker_tell(breaker)
  local listed = breaker.base .. ':breakers'
  redis.call('ZREMRANGEBYSCORE', listed, '-inf', int(breaker.now))
  redis.call('ZADD', listed, int(breaker.now + FORGOTTEN), breaker.name)
  redis.call('PEXPIRE', listed, FORGOTTEN)
  redis.call('PUBLISH', 'onward:{registry}:breakers', FORGOTTEN .. ' ' .. breaker.name)
end

-- How long the ramp after an outage takes.
local function breaker_ramp(breaker) return math.max(RAMP_MIN, math.min(RAMP_MAX, breaker.now - breaker.since)) end

-- How many calls are let go in a millisecond of a ramp that began so long ago.
local function breaker_rate(ramp, passed) return RAMP_RATE * 2 ^ (DOUBLINGS * math.max(0, passed) / ramp) end

local function breaker_probe_later(breaker, jitter)
  breaker.probe = nil
  breaker.probe_at = breaker.now + breaker.interval * (0.8 + 0.4 * jitter)
  breaker_tell(breaker)
end

local function breaker_answered(breaker, at)
  breaker.failures = 0
  if breaker.state ~= 'open' or at <= breaker.at then return end
  local lasted = breaker.now - breaker.since
  if lasted < BLIP then breaker.least, breaker.least_at = math.min(BREAKS_MAX, (breaker.least or BREAKS) * 2), breaker.now end
  breaker.state, breaker.at, breaker.ramp = 'ramp', breaker.now, breaker_ramp(breaker)
  breaker.level, breaker.filled, breaker.ask_at, breaker.probe = 1, breaker.now, breaker.now, nil
  breaker_tell(breaker)
end

local function breaker_failed(breaker, began, call, jitter)
  if breaker.state == 'open' then
    if breaker.probe ~= call then return end
    breaker.interval = math.min(PROBE_MAX, breaker.interval * 2)
    breaker_probe_later(breaker, jitter)
  elseif breaker.state ~= 'ramp' or began >= breaker.at then
    breaker.failures = breaker.failures + 1
    if breaker.failures < (breaker.least or BREAKS) then return end
    if breaker.state == 'ramp' then
      breaker.interval = math.min(PROBE_MAX, breaker.interval * 2)
    else
      breaker.since, breaker.interval = breaker.now, PROBE
    end
    breaker.state, breaker.at, breaker.ask_at = 'open', breaker.now, 0
    breaker_probe_later(breaker, jitter)
  end
end

-- Whether a report was taken in before, and its reply was lost. Remembered as long as failures count.
local function breaker_repeated(breaker, reporter, number)
  if not reporter then return false end  -- an older executor numbers none
  local key = breaker.key .. ':told:' .. reporter
  if tonumber(number) <= tonumber(redis.call('GET', key) or 0) then return true end
  redis.call('SET', key, number, 'PX', FORGOTTEN)
  return false
end

-- breaker_report: name, call ("" none), answers since the last report, ms since the newest, failures (0 or 1), ms since that
--   try began, jitter (0 to 1), reporter, number of its report, which goes up
--   → {"closed"} | {"open" or "ramp", ms since the outage began}. A probe that had neither is given back.
local function breaker_report(keys, argv)
  local breaker = breaker_open(keys[1], argv[1])
  local call = argv[2]
  if not breaker_repeated(breaker, argv[8], argv[9]) then
    if tonumber(argv[3]) > 0 then breaker_answered(breaker, breaker.now - tonumber(argv[4])) end
    if tonumber(argv[5]) > 0 then
      breaker_failed(breaker, breaker.now - tonumber(argv[6]), call, tonumber(argv[7]))
    elseif breaker.probe == call then
      breaker.probe, breaker.probe_at = nil, breaker.now
    end
  end
  breaker.state = breaker.state or 'closed'
  breaker_close(breaker)
  if breaker.state == 'closed' then return { 'closed' } end
  return { breaker.state, math.max(0, breaker.now - breaker.since) }
end

-- When the next of those who wait for an outage's end is to ask again: as they could go if the next probe, due at the
-- earliest then, ended it.
local function breaker_ask(breaker, earliest)
  local step = math.max(ASKS, 1 / breaker_rate(breaker_ramp(breaker), breaker.ask_at - earliest))
  breaker.ask_at = math.min(math.max(breaker.ask_at + step, earliest), math.max(earliest, breaker.now + ASKS_MAX))
end

-- breaker_enter: name, call → {"closed"}: nobody has to ask any more | {"probe"}: it alone may go, and it is to renew while it
--   is under way | {"go"} | {"wait", ms, ms since the outage began}: ask again then
local function breaker_enter(keys, argv)
  local breaker = breaker_open(keys[1], argv[1])
  local call, now = argv[2], breaker.now
  if breaker.state ~= 'open' and breaker.state ~= 'ramp' then
    redis.call('ZREM', keys[1] .. ':breakers', argv[1])
    return { 'closed' }
  end
  local reply
  if breaker.state == 'ramp' then
    local rate = breaker_rate(breaker.ramp, now - breaker.at)
    breaker.level = math.min(math.max(1, rate * 1000), breaker.level + rate * (now - breaker.filled))
    breaker.filled = now
    if breaker.level >= 1 then
      breaker.level = breaker.level - 1
      reply = { 'go' }
    else
      breaker.ask_at = math.max(breaker.ask_at, now)
      breaker.ask_at = breaker.ask_at + 1 / breaker_rate(breaker.ramp, breaker.ask_at - breaker.at)
    end
  else
    local under_way = breaker.probe and breaker.probe ~= call and breaker.probe_until > now
    if breaker.probe == call or (not under_way and now >= breaker.probe_at) then
      breaker.probe, breaker.probe_until = call, now + PROBE_LEASE
      reply = { 'probe' }
    else
      local earliest = under_way and now + breaker.interval or math.max(breaker.probe_at, now)
      breaker_ask(breaker, earliest)
    end
  end
  breaker_close(breaker)
  return reply or { 'wait', math.ceil(breaker.ask_at - now), math.max(0, now - breaker.since) }
end

-- breaker_renew: name, call → {"ok"} | {"gone"}: it holds no probe
local function breaker_renew(keys, argv)
  local breaker = breaker_open(keys[1], argv[1])
  if breaker.state ~= 'open' or breaker.probe ~= argv[2] then return { 'gone' } end
  breaker.probe_until = breaker.now + PROBE_LEASE
  breaker_close(breaker)
  return { 'ok' }
end

-- A store that is out of memory takes no new run and no event, but leases live on, who is late is ended, and what is past
-- its retention goes.
local SMALL = { 'allow-oom' }

local function declare(name, callback, flags)
  redis.register_function { function_name = 'onward1_' .. name, callback = callback, flags = flags or {} }
end

declare('stage', stage)
declare('submit', submit)
declare('claim', claim)
declare('append', append)
declare('park', park)
declare('renew', renew, SMALL)
declare('cancel', cancel)
declare('lose', lose)
declare('resume', resume)
declare('adopt', adopt)
declare('expel', expel, SMALL)
declare('signal', signal)
declare('blob', blob)
declare('sweep', sweep, SMALL)
declare('take', take, SMALL)
declare('settle', settle, SMALL)
declare('held', held, { 'no-writes' })
declare('register', register, SMALL)
declare('promote', promote, SMALL)
declare('executors', executors, SMALL)
declare('unregister', unregister, SMALL)
declare('cache_take', cache_take)
declare('cache_keep', cache_keep)
declare('cache_release', cache_release, SMALL)
declare('permit_take', permit_take, SMALL)
declare('permit_release', permit_release, SMALL)
declare('budget_reserve', budget_reserve)
declare('budget_settle', budget_settle, SMALL)
declare('budget_learn', budget_learn)
declare('breaker_enter', breaker_enter, SMALL)
declare('breaker_report', breaker_report, SMALL)
declare('breaker_renew', breaker_renew, SMALL)
