-- Memory trees, part 8: slots. Writes are nodes in a chain of their own, placed at the depth of the branch's head; beside
-- each stands the whole map of current writes, so that reading costs the same however many there were:
-- `slot_maps` HASH slot node -> JSON key -> node (negative where that write unset its key), `slot_heads` HASH branch -> id.

-- ARGV: branch, slot node (0: its last one). {'OK', branch JSON, slot head, its content hash, node...} the last write of each key, oldest first.
register('slots', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local head = tonumber(args[2]) ~= 0 and tonumber(args[2]) or slot_head(t, branch)
  local answer = {'OK', cjson.encode(branch), head, link(t, head).hash}
  for _, id in ipairs(last_slots(t, head, true)) do answer[#answer + 1] = whole(t, link(t, id)) end
  return answer
end, {'no-writes'})

-- ARGV: branch, key, most writes. {'OK', node...} newest first.
register('slot_history', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local answer, head, most = {'OK'}, slot_head(t, branch), tonumber(args[3])
  local map = head ~= 0 and cjson.decode(redis.call('HGET', t.slot_maps, head)) or {}
  local id = math.abs(map[args[2]] or 0)
  while id ~= 0 and #answer <= most do
    local node = whole(t, link(t, id))
    answer[#answer + 1] = node
    id = cjson.decode(string.match(node[3], '\n.*$'):sub(18)).n[1]
  end
  return answer
end, {'no-writes'})

local function slot_map(t, head)
  return head ~= 0 and cjson.decode(redis.call('HGET', t.slot_maps, head)) or {}
end

-- Whether a path may have as many keys as the writes in ARGV from `first` on would give it.
local function slots_fit(t, head, args, first, most)
  local map, count = slot_map(t, head), 0
  for _ in pairs(map) do count = count + 1 end
  for i = first, #args, 5 do
    if not map[args[i]] then count = count + 1 end
  end
  return count <= most
end

-- Append those writes (5 each: key, unset (1), record, hash, tokens) to the chain that ends at `head`; their ids.
local function append_slots(t, branch, head, args, first, now)
  local at, ids, map = link(t, head), {}, slot_map(t, head)
  for i = first, #args, 5 do
    t.next = t.next + 1
    at = child_of(t, t.next, at, {depth = branch.depth, tokens = tonumber(args[i + 4]), a = 1, b = branch.head,
                                  hash = args[i + 3]})
    save_node(t, at, branch.name, args[i + 2], now)
    map[args[i]] = args[i + 1] == '0' and at.id or -at.id
    redis.call('HSET', t.slot_maps, at.id, cjson.encode(map))
    ids[#ids + 1] = at.id
  end
  if #ids > 0 then redis.call('HSET', t.slot_heads, branch.name, at.id) end
  return ids
end

-- ARGV: 1-4, branch, slot head seen, head seen, most keys, then 5 per write.
register_write('set_slots', function(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local fenced = guard(t, args, branch)
  if fenced then return fenced end
  local seen, now = slot_head(t, branch), now_ms(t)
  if seen ~= tonumber(args[6]) or branch.head ~= tonumber(args[7]) then
    return {'HEAD_MOVED', branch.head, branch.name}
  end
  if not slots_fit(t, seen, args, 9, tonumber(args[8])) then return {'TOO_MANY', 'writes', args[8]} end
  local ids = append_slots(t, branch, seen, args, 9, now)
  return commit(t, args, now, EVENT.SLOTS_SET, branch.name, ids, {ids = ids})
end)
