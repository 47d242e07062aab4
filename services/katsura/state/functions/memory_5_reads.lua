-- Memory trees, part 5: reads (one call, one point in time), and the two writes that are not commits: attaching token
-- ids and noting a cut.

local function tokenized(t, id)
  local digests = {}
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do
    if redis.call('HEXISTS', t.prefix .. 'tokens:' .. digest, id) == 1 then digests[#digests + 1] = digest end
  end
  table.sort(digests)
  return table.concat(digests, ' ')
end

-- Bytes put beside a node (memory_6_contents.lua), in the order they were first put.
local function extras(t, id)
  local found = {}
  local count = tonumber(string.match(redis.call('HGET', t.extras, id) or '0', '^%d+'))
  for k = 1, count do found[k] = redis.call('HGET', t.extras, id .. ':' .. k) end
  return found
end

local function references_of(t, id)
  if t.referring == nil then t.referring = redis.call('EXISTS', t.references) == 1 end
  return t.referring and redis.call('HGET', t.references, id) or ''
end

-- The node at a place as an array: id, link, record, verdict ('' but for summaries), blob, tokenizer digests, extras,
-- references, and the marks that are seen from the path which ends at `head` (nil: all).
local function whole(t, at, head)
  return {at.id, at.raw, redis.call('HGET', t.nodes, at.id), redis.call('HGET', t.verdicts, at.id) or '',
          redis.call('HGET', t.blobs, at.id) or '', tokenized(t, at.id), extras(t, at.id), references_of(t, at.id),
          seen_marks(t, at, head)}
end

local function size_of(node)
  local bytes = #node[3] + #node[5]
  for _, extra in ipairs(node[7]) do bytes = bytes + #extra end
  return bytes
end

local STALE_MOST, STALE_LOOKS = 64, 1024

-- {'OK', meta as a flat list, branches as a flat list, stale nodes}
register('read', function(keys)
  local t = keys_of(keys[1])
  if redis.call('HEXISTS', t.meta, 'revision') == 0 then return absent(t) end
  return {'OK', redis.call('HGETALL', t.meta), redis.call('HGETALL', t.branches), redis.call('ZCARD', t.stale_ids)}
end, {'no-writes'})

-- ARGV: most bytes, then ids. {'OK', node...}
register('nodes', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local answer, bytes = {'OK'}, 0
  for i = 2, #args do
    local id = tonumber(args[i])
    local at = link(t, id)
    if not at or id == 0 then return {'NODE_NOT_FOUND', id, i - 2} end
    local node = whole(t, at)
    bytes = bytes + size_of(node)
    if i > 2 and bytes > tonumber(args[1]) then return {'TOO_LARGE', i - 2} end
    answer[i] = node
  end
  return answer
end, {'no-writes'})

-- ARGV: branch, last step of the page (0: the head), most steps, most bytes, do not go above this depth.
-- {'OK', branch JSON, next end node, node...} newest first.
register('path', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local id, most, bytes, floor = tonumber(args[2]), tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local at, off_path = on_path(t, branch.head, id == 0 and branch.head or id)
  if not at then return off_path end
  local answer = {'OK', cjson.encode(branch), 0}
  while at.depth > floor and #answer - 3 < most do
    local node = whole(t, at, branch.head)
    bytes = bytes - size_of(node)
    if bytes < 0 and #answer > 3 then break end
    answer[#answer + 1] = node
    at = link(t, at.parent)
  end
  answer[3] = at.depth > floor and at.id or 0
  return answer
end, {'no-writes'})

-- Rendered tokens of a node under the tokenizer, -1 where no ids are attached.
local function count_tokens(t, tokens_key, id)
  local bytes = tokens_key and redis.call('HSTRLEN', tokens_key, id) or 0
  return bytes > 0 and bytes / 4 or -1
end

local function shown(t, tokens_key, with_ids, at, judged)
  local count = count_tokens(t, tokens_key, at.id)
  local ids = with_ids and count >= 0 and redis.call('HGET', tokens_key, at.id) or ''
  local judgement = judged and redis.call('HGET', t.verdicts, at.id) or ''
  return {at.id, at.raw, redis.call('HGET', t.nodes, at.id), judgement, count, ids}
end

local function cost_of(unit, place)
  return unit[5] >= 0 and unit[5] or place.tokens
end

local LINKS_PAGE, RECORDS_PAGE = 32, 256

-- A step of a path with what a walk needs of its place. Its parent is mostly the node before it, so links are fetched by
-- the page.
local function walked(t, page, id)
  if id == 0 then return ROOT end
  if not page[id] then
    local ids = {}
    for k = math.max(1, id - LINKS_PAGE + 1), id do ids[#ids + 1] = k end
    for k, raw in ipairs(redis.call('HMGET', t.links, unpack(ids))) do page[ids[k]] = raw end
  end
  local parent, tokens, cum = string.match(page[id], '^(%d+) %d+ %d+ %d+ (%d+) (%d+)')
  return {id = id, parent = tonumber(parent), tokens = tonumber(tokens), cum = tonumber(cum), raw = page[id]}
end

local function fill_records(t, units)
  for first = 1, #units, RECORDS_PAGE do
    local ids = {}
    for k = first, math.min(#units, first + RECORDS_PAGE - 1) do ids[#ids + 1] = units[k][1] end
    for k, record in ipairs(redis.call('HMGET', t.nodes, unpack(ids))) do units[first + k - 1][3] = record end
  end
end

-- Raw steps, newest first, passing over the covers of VALID summaries, until they cost more than `limit`.
local function raw_steps(t, branch, limit, most, tokens_key, with_ids)
  local page, units, spent, summary = {}, {}, 0, rolled(t, link(t, branch.summary_head))
  local at = walked(t, page, branch.head)
  while at.id ~= 0 and spent <= limit and #units < most do
    if summary.id ~= 0 and summary.b == at.id then
      if verdict(t, summary.id) == VALID then at = walked(t, page, summary.a) end
      summary = rolled(t, link(t, summary.parent))
    else
      local count = count_tokens(t, tokens_key, at.id)
      local ids = with_ids and count >= 0 and redis.call('HGET', tokens_key, at.id) or ''
      local unit = {at.id, at.raw, '', '', count, ids}
      spent = spent + cost_of(unit, at)
      units[#units + 1] = unit
      at = walked(t, page, at.parent)
    end
  end
  fill_records(t, units)
  return units, at
end

-- A chain of hints, or of summaries where `next_of` is `rolled`, newest first, until it costs more than `limit`.
local function chain(t, id, limit, most, tokens_key, with_ids, next_of)
  local units, spent, at = {}, 0, next_of(t, link(t, id))
  while at.id ~= 0 and spent <= limit and #units < most do
    local unit = shown(t, tokens_key, with_ids, at, true)
    spent = spent + cost_of(unit, at)
    units[#units + 1] = unit
    at = next_of(t, link(t, at.parent))
  end
  return units, at
end

local function itself(_, at) return at end

-- ARGV: branch, most summaries. {'OK', branch JSON, then a roll-up that is not VALID ends here (1) and node by turns}
-- newest first.
register('summaries', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local answer, at = {'OK', cjson.encode(branch)}, rolled(t, link(t, branch.summary_head))
  while at.id ~= 0 and (#answer - 2) / 2 < tonumber(args[2]) do
    answer[#answer + 1] = ending(t, at) and 1 or 0
    answer[#answer + 1] = whole(t, at)
    at = rolled(t, link(t, at.parent))
  end
  return answer
end, {'no-writes'})

-- The last write of each key, in the order they were made; without those that unset theirs unless `all`.
local function last_slots(t, head, all)
  local ids = {}
  if head == 0 then return ids end
  for _, id in pairs(cjson.decode(redis.call('HGET', t.slot_maps, head))) do
    if id > 0 or all then ids[#ids + 1] = math.abs(id) end
  end
  table.sort(ids)
  return ids
end

-- ARGV: branch, token limit, most units, most hints, tokenizer digest ('': none), with ids.
-- {'OK', meta, branch JSON, revision, root unit, steps, summaries, hints, rest of steps, rest of summaries,
--  rest of hints, slots, stale steps, marks still to be spread (1), waiting steps}; a rest is {id, tokens not returned}.
register('context', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local limit, most, with_ids = tonumber(args[2]), tonumber(args[3]), args[6] == '1'
  local tokens_key = args[5] ~= '' and t.prefix .. 'tokens:' .. args[5] or nil
  local steps, step_rest = raw_steps(t, branch, limit, most, tokens_key, with_ids)
  local summaries, summary_rest = chain(t, branch.summary_head, limit, most, tokens_key, with_ids, rolled)
  local hints, hint_rest = chain(t, branch.hint, limit, tonumber(args[4]), tokens_key, with_ids,
                                  itself)
  local root_count = count_tokens(t, tokens_key, 0)
  local root_ids = with_ids and root_count >= 0 and redis.call('HGET', tokens_key, 0) or ''
  local slots, waiting = {}, {}
  for i, id in ipairs(waiting_at(t, link(t, branch.head))) do waiting[i] = shown(t, tokens_key, with_ids, link(t, id), false) end
  for i, id in ipairs(last_slots(t, slot_head(t, branch), false)) do slots[i] = shown(t, tokens_key, with_ids, link(t, id), false) end
  return {'OK', redis.call('HGETALL', t.meta), cjson.encode(branch), {root_count, root_ids}, steps, summaries, hints,
          {step_rest.id, step_rest.cum}, {summary_rest.id, summary_rest.cum}, {hint_rest.id, hint_rest.cum}, slots,
          stale_on(t, branch.head, STALE_MOST, STALE_LOOKS), redis.call('EXISTS', t.stale_queue), waiting}
end, {'no-writes'})

-- ARGV: branch. {'OK', branch JSON, node...} of the steps that wait, oldest first.
register('waiting', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local answer = {'OK', cjson.encode(branch)}
  for _, id in ipairs(waiting_at(t, link(t, branch.head))) do answer[#answer + 1] = whole(t, link(t, id), branch.head) end
  return answer
end, {'no-writes'})

-- ARGV: tokenizer digest, most tokenizers, then id and ids (little-endian u32) by turns. {'OK', ids that stayed...}
register('attach', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  for i = 3, #args, 2 do
    if not link(t, tonumber(args[i])) then return {'NODE_NOT_FOUND', args[i], (i - 3) / 2} end
  end
  if redis.call('SISMEMBER', t.tokenizers, args[1]) == 0 and redis.call('SCARD', t.tokenizers) >= tonumber(args[2]) then
    return {'TOO_MANY_TOKENIZERS'}
  end
  redis.call('SADD', t.tokenizers, args[1])
  redis.call('HINCRBY', t.meta, 'replayed', 1)  -- the barrier after this call also covers ids attached before
  local answer = {'OK'}
  for i = 3, #args, 2 do
    if redis.call('HSETNX', t.prefix .. 'tokens:' .. args[1], args[i], args[i + 1]) == 0 then
      answer[#answer + 1] = tonumber(args[i])
    end
  end
  expire(t)
  return answer
end)

-- ARGV: branch, depth. A note for `cut_moved`: it may be lost, and nothing is decided by it.
register('note_cut', function(keys, args)
  local t = open(keys)
  local branch = t and load_branch(t, args[1])
  if branch then
    branch.cut = tonumber(args[2])
    save_branch(t, branch)
  end
  return {'OK'}
end)
