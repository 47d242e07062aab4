-- Memory trees, part 1, continued: tasks for workers outside. Claiming and finishing them: memory_a_queue.lua.

local COMPRESS, VALIDATE = 1, 2
local PENDING = 1

local function due_key(t, kind)
  return kind == COMPRESS and t.compress_due or t.validate_due
end

local function load_work(t, name)
  local text = redis.call('HGET', t.work, name)
  return text and cjson.decode(text) or nil
end

-- Keep a task; it is claimed at `score` or later, never where it is given up.
local function save_work(t, item, score)
  redis.call('HSET', t.work, item.work_id, cjson.encode(item))
  if item.given_up then
    redis.call('ZREM', due_key(t, item.kind), item.work_id)
  else
    redis.call('ZADD', due_key(t, item.kind), score, item.work_id)
  end
end

local function drop_work(t, item)
  redis.call('HDEL', t.work, item.work_id)
  redis.call('ZREM', due_key(t, item.kind), item.work_id)
end

-- Make a task, or take one up again that was given up; one that is there already stays as it is. Answers it.
local function put_work(t, kind, branch, summary, reason, now)
  local name = kind == COMPRESS and 'compress:' .. branch or 'validate:' .. summary
  local item = load_work(t, name)
  if item and not item.given_up then return item end
  item = {work_id = name, kind = kind, branch = branch, summary = summary, base = 0, last = 0, attempts = 0, token = 0,
          worker = '', lease_end_ms = 0, ready_ms = now, create_ms = now, reason = reason, given_up = false}
  save_work(t, item, now)
  expire(t)
  return item
end
