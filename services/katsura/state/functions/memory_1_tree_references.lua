-- Memory trees, part 1, continued: references between nodes, and what is stale because something that it leads to no
-- longer holds. A reference leads to a node made before, so references never close a circle.
--
-- Marks spread from a queue that every commit works on for a while: what is left goes on with the next commit, or
-- with `settle`. An item is `<node> <after> <seen from> <cause> <reason> <tree of the cause>`, to mark the steps made after
-- `after` that refer to the node, or `left <head> <depth> <after>`, for the nodes of an abandoned segment that other paths
-- refer to. A mark is {seen from, cause, reason}, and the tree of the cause where that is another one.

local STALE = {REPLACED = 1, REDACTED = 2, LEFT = 3, INVALIDATED = 4, FAILED = 5}
local MARKS_MAX, SPREAD_PAGE = 16, 128

local function is_step(at) return at.b == 0 and at.depth > 0 end

local function place_of(to, from) return string.format('%016d:%016d', to, from) end

local function decoded(t, key, id)
  local text = redis.call('HGET', key, id)
  return text and cjson.decode(text) or {}
end

-- Whether one mark stands before another; nil where they are the same.
local function stands_before(a, b)
  for i = 1, 3 do
    if a[i] ~= b[i] then return a[i] < b[i] end
  end
  if a[4] ~= b[4] then return (a[4] or '') < (b[4] or '') end
end

-- Whether the node was not marked so before. The first marks in order are kept, so that the order of marking is nothing.
local function mark(t, id, new)
  local found, at = decoded(t, t.stale, id), 1
  while found[at] and stands_before(found[at], new) do at = at + 1 end
  if at > MARKS_MAX or found[at] and stands_before(new, found[at]) == nil then return false end
  table.insert(found, at, new)
  found[MARKS_MAX + 1] = nil
  redis.call('HSET', t.stale, id, cjson.encode(found))
  redis.call('ZADD', t.stale_ids, id, id)
  return true
end

local function item_of(id, after, new)
  return string.format('%d %d %d %d %d ', id, after, new[1], new[2], new[3]) .. (new[4] or '')
end

local function push_mark(t, id, new) redis.call('RPUSH', t.stale_queue, item_of(id, 0, new)) end

-- Something befell a node: whatever leads to it is stale, and so is it itself where that is not told otherwise.
local function doubt(t, id, seen_from, reason, itself)
  if itself then mark(t, id, {seen_from, id, reason}) end
  if redis.call('EXISTS', t.dependents) == 1 then push_mark(t, id, {seen_from, id, reason}) end
end

-- The part of a path above `depth` was left behind: what other paths took from it is in doubt.
local function doubt_left(t, head, depth)
  if redis.call('EXISTS', t.crossed) == 1 then
    redis.call('RPUSH', t.stale_queue, string.format('left %d %d 0', head, depth))
  end
end

-- Heads of the branches that somebody may go on from.
local function live_heads(t)
  local heads = {}
  for _, text in ipairs(redis.call('HVALS', t.branches)) do
    local branch = cjson.decode(text)
    if branch.state ~= ABANDONED or branch.held_by then heads[#heads + 1] = branch.head end
  end
  return heads
end

local function on_path_of_any(t, heads, at)
  for _, head in ipairs(heads) do
    if climb(t, head, at.depth).id == at.id then return true end
  end
  return false
end

local function spread(t, id, after, new)
  local found = redis.call('ZRANGEBYLEX', t.dependents, '(' .. place_of(id, after), '(' .. place_of(id + 1, 0), 'LIMIT', 0,
                           SPREAD_PAGE)
  local from
  for _, place in ipairs(found) do
    from = tonumber(string.sub(place, 18))
    if from ~= new[1] and mark(t, from, new) then push_mark(t, from, new) end
  end
  if #found == SPREAD_PAGE then
    redis.call('LPUSH', t.stale_queue, item_of(id, from, new))
  end
  return #found
end

local function spread_left(t, head, depth, after)
  local ids = redis.call('ZRANGEBYSCORE', t.crossed, '(' .. after, '+inf', 'LIMIT', 0, SPREAD_PAGE)
  local heads = #ids > 0 and live_heads(t)
  for _, id in ipairs(ids) do
    local at = link(t, tonumber(id))
    if at.depth > depth and climb(t, head, at.depth).id == at.id and not on_path_of_any(t, heads, at) then
      doubt(t, at.id, 0, STALE.LEFT, true)
    end
  end
  if #ids == SPREAD_PAGE then
    redis.call('LPUSH', t.stale_queue, string.format('left %d %d %d', head, depth, ids[#ids]))
  end
  return #ids
end

-- Work on the queue until about `looks` nodes were looked at; whether nothing is left.
settle = function(t, looks)
  local item = redis.call('LPOP', t.stale_queue)
  if not item then return true end
  while item do
    local n, tree = {}, string.match(item, '^%d+ %d+ %d+ %d+ %d+ (.+)$')
    for word in string.gmatch(item, '%d+') do n[#n + 1] = tonumber(word) end
    if string.sub(item, 1, 5) == 'left ' then
      looks = looks - spread_left(t, n[1], n[2], n[3])
    else
      looks = looks - spread(t, n[1], n[2], {n[3], n[4], n[5], tree})
    end
    looks = looks - 1
    item = looks > 0 and redis.call('LPOP', t.stale_queue)
  end
  return redis.call('EXISTS', t.stale_queue) == 0
end

-- Take down references of a step, {to, kind, declared (1), tree ('': its own)} each. Unless `quiet`, the step is stale where
-- what one leads to is.
local function refer(t, at, new, quiet)
  local found = decoded(t, t.references, at.id)
  for _, reference in ipairs(new) do
    found[#found + 1] = reference
    if reference[4] == '' then
      local to = link(t, reference[1])
      redis.call('ZADD', t.dependents, 0, place_of(to.id, at.id))
      if is_step(to) and climb(t, at.id, to.depth).id ~= to.id then redis.call('ZADD', t.crossed, to.id, to.id) end
      local marks = quiet and {} or decoded(t, t.stale, to.id)
      if not quiet and string.sub(redis.call('HGET', t.verdicts, to.id) or '', 1, 1) == '3' then marks[#marks + 1] = {0, to.id, STALE.FAILED} end
      for _, seen in ipairs(marks) do
        if mark(t, at.id, seen) then push_mark(t, at.id, seen) end
      end
    else
      redis.call('HSET', t.meta, 'foreign', 1)
      redis.call('HSET', t.looked, reference[4] .. '\n' .. place_of(reference[1], at.id), quiet and '' or '[]')
    end
  end
  redis.call('HSET', t.references, at.id, cjson.encode(found))
end

-- nil where references made by the step `from` (0: one that is about to be made) may be taken down, else the answer.
local function check_references(t, from, new)
  for _, reference in ipairs(new) do
    local id = reference[1]
    local to = reference[4] == '' and link(t, id)
    if reference[4] == '' and (not to or id == 0) then return {'NODE_NOT_FOUND', id} end
    if to and not is_step(to) and redis.call('HEXISTS', t.verdicts, id) == 0 or from ~= 0 and id >= from then
      return {'BAD_REFERENCE', id}
    end
  end
end

-- Marks of a node that are seen from the path which ends at `head` (nil: all), as {seen from, cause, reason, tree ('': this
-- one), depth from which on they are seen}.
local function seen_marks(t, at, head)
  if t.doubtful == nil then t.doubtful = redis.call('EXISTS', t.stale) == 1 end
  local seen = {}
  if not t.doubtful then return seen end
  for _, found in ipairs(decoded(t, t.stale, at.id)) do
    local from = link(t, found[1])
    if not head or from.id == 0 or climb(t, head, from.depth).id == from.id then
      found[4], found[5] = found[4] or '', math.max(from.depth, at.depth)
      seen[#seen + 1] = found
    end
  end
  return seen
end

-- Stale steps on the path that ends at `head`, newest first, as {node, seen from, cause, reason, tree, depth}.
local function stale_on(t, head, most, looks)
  local answer = {}
  for _, id in ipairs(redis.call('ZREVRANGE', t.stale_ids, 0, looks - 1)) do
    local at = link(t, tonumber(id))
    if is_step(at) and climb(t, head, at.depth).id == at.id then
      for _, seen in ipairs(seen_marks(t, at, head)) do
        if #answer < most then answer[#answer + 1] = {at.id, unpack(seen)} end
      end
    end
  end
  return answer
end
