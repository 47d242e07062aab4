-- Blocks: named values with history. Keys and formats: state/keys.py.
-- Called with KEYS = values, names, history, expiry, replays, order, bytes of one owner. Answers {'OK', ...} or {reason, ...}.

local PURGED_PER_WRITE = 16

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The stored head of a name, and its payload: nil where it was never written.
local function load(values, name)
  local stored = redis.call('HGET', values, name)
  if not stored then return nil end
  local v, c, u, e, d, payload = string.match(stored, '^(%d+) (%d+) (%d+) (%d+) (%d)\n(.*)$')
  return {version = tonumber(v), created = tonumber(c), expires = tonumber(e), deleted = d == '1', payload = payload,
          stored = stored}
end

local function alive(block, now)
  return block and not block.deleted and (block.expires == 0 or block.expires > now)
end

local function encode(version, created, now, expires, deleted, payload)
  return string.format('%d %d %d %d %d\n', version, created, now, expires, deleted) .. payload
end

-- What the owner takes: bytes of all versions that are kept, and blocks. A version of us that did not count leaves `bytes`
-- out: it is counted once, from the history, and all of it is told as added.
local function taken(keys)
  local size, added = redis.call('GET', keys[7]), 0
  if not size then
    for _, field in ipairs(redis.call('HKEYS', keys[3])) do added = added + redis.call('HSTRLEN', keys[3], field) end
    redis.call('SET', keys[7], added)
  end
  return {size = tonumber(size or 0), blocks = size and redis.call('ZCARD', keys[2]) or 0}
end

-- Keep a version in the history, and drop the one that is too old.
local function keep(keys, version, name, stored, kept)
  local new, old = version .. ' ' .. name, (version - kept) .. ' ' .. name
  local before = redis.call('HSTRLEN', keys[3], new) + redis.call('HSTRLEN', keys[3], old)
  redis.call('HSET', keys[3], new, stored)
  redis.call('HDEL', keys[3], old)
  redis.call('INCRBY', keys[7], #stored - before)
end

-- An answer with what the call has added behind it: bytes and blocks.
local function with_added(keys, before, answer)
  answer[3] = tonumber(redis.call('GET', keys[7])) - before.size
  answer[4] = redis.call('ZCARD', keys[2]) - before.blocks
  return answer
end

local function forget(keys, name, block, kept)
  local values, names, history, expiry = unpack(keys)
  for version = math.max(1, block.version - kept + 1), block.version do
    redis.call('DECRBY', keys[7], redis.call('HSTRLEN', history, version .. ' ' .. name))
    redis.call('HDEL', history, version .. ' ' .. name)
  end
  redis.call('HDEL', values, name)
  redis.call('ZREM', names, name)
  redis.call('ZREM', expiry, name)
end

local function purge(keys, now, kept)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', keys[4], '-inf', now, 'LIMIT', 0, PURGED_PER_WRITE)) do
    forget(keys, name, load(keys[1], name), kept)
  end
end

-- The answer given before, or nil. It writes, so that the durability barrier after the call covers what it repeats.
local function replay(keys, args)
  if args[2] == '' then return nil end
  local seen = redis.call('HGET', keys[5], args[2])
  if not seen then return nil end
  redis.call('HSET', keys[5], args[2], seen)
  if string.sub(seen, 1, #args[3]) ~= args[3] then return {'REQUEST_ID_REUSED'} end
  return {'OK', string.sub(seen, #args[3] + 1)}
end

local function remember(keys, args, text)
  if args[2] ~= '' then
    redis.call('HSET', keys[5], args[2], args[3] .. text)
    if redis.call('RPUSH', keys[6], args[2]) > tonumber(args[1]) then
      redis.call('HDEL', keys[5], redis.call('LPOP', keys[6]))
    end
  end
  return {'OK', text}
end

local function moved(block, now, expected)
  local version = alive(block, now) and block.version or 0
  if expected >= 0 and expected ~= version then return {'VERSION_MOVED', version} end
end

-- ARGV: replays kept, request, digest, versions kept, name, expected version (-1: any), payload, ttl ms, most blocks.
-- {'OK', stored, bytes added, blocks added}; where it repeats an answer, without what was added.
register('put', function(keys, args)
  local again = replay(keys, args)
  if again then return again end
  local now, kept, name, payload = now_ms(), tonumber(args[4]), args[5], args[7]
  local block = load(keys[1], name)
  local lost = moved(block, now, tonumber(args[6]))
  if lost then return lost end
  if not alive(block, now) and redis.call('ZCARD', keys[2]) >= tonumber(args[9]) then return {'TOO_MANY_BLOCKS'} end
  local before = taken(keys)
  purge(keys, now, kept)
  block = load(keys[1], name)
  local expires = tonumber(args[8]) > 0 and now + tonumber(args[8]) or 0
  local version, created, updated = (block and block.version or 0) + 1, block and block.created or now, now
  if alive(block, now) and block.payload == payload then
    version, updated = block.version, tonumber(string.match(block.stored, '^%d+ %d+ (%d+)'))
  end
  local stored = encode(version, created, updated, expires, 0, payload)
  redis.call('HSET', keys[1], name, stored)
  keep(keys, version, name, stored, kept)
  redis.call('ZADD', keys[2], 0, name)
  if expires > 0 then redis.call('ZADD', keys[4], expires, name) else redis.call('ZREM', keys[4], name) end
  return with_added(keys, before, remember(keys, args, stored))
end)

-- ARGV: replays kept, request, digest, versions kept, name, expected version (-1: any), forget (1).
-- {'OK', '1' or '0', bytes added, blocks added}
register('delete', function(keys, args)
  local again = replay(keys, args)
  if again then return again end
  local now, kept, name = now_ms(), tonumber(args[4]), args[5]
  local block = load(keys[1], name)
  local lost = moved(block, now, tonumber(args[6]))
  if lost then return lost end
  local was, before = alive(block, now) and '1' or '0', taken(keys)
  if block and args[7] == '1' then
    forget(keys, name, block, kept)
  elseif was == '1' then
    local version = block.version + 1
    local stored = encode(version, block.created, now, 0, 1, '')
    redis.call('HSET', keys[1], name, stored)
    keep(keys, version, name, stored, kept)
    redis.call('ZREM', keys[2], name)
    redis.call('ZREM', keys[4], name)
  end
  return with_added(keys, before, remember(keys, args, was))
end, {'allow-oom'})

-- ARGV: name. {'OK', stored}
register('get', function(keys, args)
  local block = load(keys[1], args[1])
  if not alive(block, now_ms()) then return {'BLOCK_NOT_FOUND'} end
  return {'OK', block.stored}
end, {'no-writes'})

-- ARGV: prefix, after this name ('': from the first), most blocks, most looked at, most bytes, then words.
-- {'OK', next after, name and stored by turns}
register('list', function(keys, args)
  local now, most, looks, bytes = now_ms(), tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local from = args[2] ~= '' and args[2] > args[1] and '(' .. args[2] or '[' .. args[1]
  local names = redis.call('ZRANGEBYLEX', keys[2], from, '(' .. args[1] .. '\255', 'LIMIT', 0, looks + 1)
  local answer, last = {'OK', ''}, ''
  for i, name in ipairs(names) do
    if i > looks or (#answer - 2) / 2 >= most then
      answer[2] = last
      break
    end
    local block = load(keys[1], name)
    local wanted = alive(block, now)
    if wanted and #args > 5 then
      local head = tonumber(string.sub(block.payload, 1, 6), 16)
      local text = string.lower(name .. '\n' .. string.sub(block.payload, 7 + head))
      for word = 6, #args do wanted = wanted and string.find(text, args[word], 1, true) end
    end
    if wanted then
      bytes = bytes - #block.stored
      if bytes < 0 and #answer > 2 then
        answer[2] = last
        break
      end
      answer[#answer + 1] = name
      answer[#answer + 1] = block.stored
    end
    last = name
  end
  return answer
end, {'no-writes'})

-- ARGV: name, versions kept. {'OK', stored...} newest first.
register('history', function(keys, args)
  local block, answer = load(keys[1], args[1]), {'OK'}
  if not block or (block.expires > 0 and block.expires <= now_ms()) then return answer end
  for version = block.version, math.max(1, block.version - tonumber(args[2]) + 1), -1 do
    answer[#answer + 1] = redis.call('HGET', keys[3], version .. ' ' .. args[1])
  end
  return answer
end, {'no-writes'})
