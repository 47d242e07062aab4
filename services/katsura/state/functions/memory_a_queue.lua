-- Memory trees, part 10: claiming tasks under leases, and writing what workers made while their claim is the newest.
-- The fencing token counts every claim of a tree. Token and worker are compared, so that a store which lost its last
-- second, and counts again from an older token, still tells two claims apart.

local LOOKS = 64

-- The task, if this claim is the newest, else nil and the answer to give.
local function fence(t, name, token, worker)
  local item = load_work(t, name)
  if not item then return nil, {'LEASE_LOST', name, 'done'} end
  if item.token ~= tonumber(token) or item.worker ~= worker then return nil, {'LEASE_LOST', name, 'taken'} end
  return item
end

local function release(t, item, reason, ready, most)
  item.worker, item.lease_end_ms, item.ready_ms, item.reason = '', 0, ready, reason
  item.given_up = item.attempts >= most
  save_work(t, item, ready)
end

-- Whether a task still makes sense; of COMPRESS, it then says which segment.
local function needed(t, item, steps_max)
  if item.kind == VALIDATE then
    return redis.call('HEXISTS', t.verdicts, item.summary) == 1 and verdict(t, item.summary) == PENDING
  end
  local branch = load_branch(t, item.branch)
  if not branch or branch.state ~= ACTIVE then return false end
  local base, head = link(t, standing_summary(t, branch).b), link(t, branch.head)
  if head.depth <= base.depth then return false end
  item.base, item.last = base.id, climb(t, head.id, base.depth + steps_max).id
  return true
end

-- The earliest time at which a task of the tree may be claimed, 0 where there is none.
local function next_due(t)
  local first = 0
  for _, key in ipairs({t.compress_due, t.validate_due}) do
    local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if found[2] and (first == 0 or tonumber(found[2]) < first) then first = tonumber(found[2]) end
  end
  return first
end

-- ARGV: kind, branch, summary, reason. {'OK', task}
register('schedule', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[2])
  if not branch then return unknown end
  local item = {kind = tonumber(args[1]), branch = branch.name, summary = tonumber(args[3])}
  if not needed(t, item, 1) then return {'NO_WORK', args[1], branch.name, args[3]} end
  return {'OK', cjson.encode(put_work(t, item.kind, branch.name, item.summary, args[4], now_ms(t)))}
end)

-- ARGV: kind (0: any), worker, lease ms, most tasks, most attempts, most steps of a segment.
-- {'OK', next time at which there may be more (0: none), task...}
register('claim', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local now, answer = now_ms(t), {'OK', 0}
  for _, kind in ipairs({VALIDATE, COMPRESS}) do  -- what is almost done comes first
    local names = {}
    if args[1] == '0' or tonumber(args[1]) == kind then
      names = redis.call('ZRANGEBYSCORE', due_key(t, kind), '-inf', now, 'LIMIT', 0, LOOKS)
    end
    for _, name in ipairs(names) do
      if #answer - 2 >= tonumber(args[4]) then break end
      local item = load_work(t, name)
      if not needed(t, item, tonumber(args[6])) then
        drop_work(t, item)
      elseif item.attempts >= tonumber(args[5]) then
        release(t, item, 'the lease of ' .. item.worker .. ' ended', now, 0)
      else
        item.attempts, item.worker, item.lease_end_ms = item.attempts + 1, args[2], now + tonumber(args[3])
        item.token = redis.call('HINCRBY', t.meta, 'claims', 1)
        save_work(t, item, item.lease_end_ms)
        answer[#answer + 1] = cjson.encode(item)
      end
    end
  end
  answer[2] = next_due(t)
  return answer
end)

-- ARGV: task, token, worker. {'OK', task}
register('held', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local item, lost = fence(t, args[1], args[2], args[3])
  return lost or {'OK', cjson.encode(item)}
end, {'no-writes'})

-- ARGV: task, token, worker, lease ms. {'OK', task}
register('renew', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local item, lost = fence(t, args[1], args[2], args[3])
  if lost then return lost end
  item.lease_end_ms = now_ms(t) + tonumber(args[4])
  save_work(t, item, item.lease_end_ms)
  return {'OK', cjson.encode(item)}
end)

-- ARGV: task, token, worker, reason, retry after ms, most attempts. {'OK', task}
register('give_back', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local item, lost = fence(t, args[1], args[2], args[3])
  if lost then return lost end
  release(t, item, args[4], now_ms(t) + tonumber(args[5]), tonumber(args[6]))
  return {'OK', cjson.encode(item)}
end)

-- ARGV: cursor. {'OK', next cursor, name, task...}
register('work', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local found = redis.call('HSCAN', t.work, args[1], 'COUNT', 1000)
  return {'OK', found[1], found[2]}
end, {'no-writes'})

-- A write that stands only while its claim is the newest, and ends the task unless what it wrote FAILED: the worker may
-- try again. ARGV: those of the write, then task, token, worker.
local function fenced(write, status_at)
  return function(keys, args)
    local worker, token, name = table.remove(args), table.remove(args), table.remove(args)
    local t, missing = open(keys)
    if not t then return missing end
    local again = replay(t, args)
    if again then return again end
    local item, lost = fence(t, name, token, worker)
    if lost then return lost end
    local answer = write(keys, args)
    local tries = status_at and tonumber(args[status_at]) == FAILED
    if answer[1] == 'OK' and not tries then drop_work(t, item) end
    return answer
  end
end

register('summarise_fenced', fenced(summarise, 12))
register('judge_fenced', fenced(judge, nil))
