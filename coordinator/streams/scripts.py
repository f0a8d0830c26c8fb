"""What must happen as one on the Redis server, in Lua. Needs Redis 6.2 or any Valkey; clocks are the server's own.

KEYS of the queue are the hash `queued` (task id -> "level entry") where it is used, then the streams of the levels.
"""

from __future__ import annotations

from typing import Final

PUSH: Final = """
for i = 1, #ARGV, 2 do
  local task, level = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', KEYS[1], task)
  if known then
    local at, id = string.match(known, '^(%d) (.+)$')
    known = #redis.call('XRANGE', KEYS[1 + tonumber(at)], id, id) > 0
  end
  if not known then
    local id = redis.call('XADD', KEYS[1 + tonumber(level)], '*', 't', task)
    redis.call('HSET', KEYS[1], task, level .. ' ' .. id)
  end
end
"""
"""Adds (task, level) pairs that are not in the queue yet."""

TAKE: Final = """
local group, consumer, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local taken = {}
for level = 1, #KEYS do
  local left = limit - #taken
  if left > 0 then
    local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', left, 'STREAMS', KEYS[level], '>')
    if reply and reply.err then -- no group: the first time, and whenever the server has lost its data
      redis.call('XGROUP', 'CREATE', KEYS[level], group, '0', 'MKSTREAM')
      reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', left, 'STREAMS', KEYS[level], '>')
    end
    if reply then
      for _, entry in ipairs(reply[1][2]) do
        if entry[2] then taken[#taken + 1] = {level, entry[1], entry[2][2]} end
      end
    end
  end
end
return taken
"""
"""Up to `limit` entries as (level, id, task), the first level first."""

ORPHANS: Final = """
local group, consumer, idle, limit, forget = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for level = 1, #KEYS - 1 do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[level], group)
  for _, fields in ipairs(consumers.err and {} or consumers) do
    local of = {}
    for i = 1, #fields, 2 do of[fields[i]] = fields[i + 1] end
    local until_ = of.name ~= consumer and redis.call('ZSCORE', KEYS[#KEYS], of.name)
    if of.name ~= consumer and of.pending == 0 and of.idle > forget then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[level], group, of.name)
    elseif until_ and tonumber(until_) <= now and of.pending > 0 and limit > #taken then
      for _, held in ipairs(redis.call('XPENDING', KEYS[level], group, '-', '+', limit - #taken, of.name)) do
        for _, entry in ipairs(redis.call('XCLAIM', KEYS[level], group, consumer, 0, held[1])) do
          if entry and entry[2] then taken[#taken + 1] = {level, entry[1], entry[2][2]} end
        end
      end
    end
  end
  local cursor = '0-0'
  repeat
    local left = limit - #taken
    if left == 0 then break end
    local reply = redis.pcall('XAUTOCLAIM', KEYS[level], group, consumer, idle, cursor, 'COUNT', left)
    if reply.err then break end -- no stream or no group: nothing is held
    cursor = reply[1]
    for _, entry in ipairs(reply[2]) do
      if entry and entry[2] then taken[#taken + 1] = {level, entry[1], entry[2][2]} end
    end
  until cursor == '0-0'
end
return taken
"""
"""KEYS: the streams, and the instances of `BEAT`. Takes over what is idle for so long (ms), and all that those hold whose time
is over. Consumers that hold nothing and said nothing for `forget` ms are forgotten."""

KEEP: Final = """
local group, consumer = ARGV[1], ARGV[2]
for i = 3, #ARGV, 2 do
  local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local held = redis.pcall('XPENDING', key, group, id, id, 1)
  if not held.err and held[1] and held[1][2] == consumer then
    redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
  end
end
"""
"""The (level, id) pairs that are still this consumer's are idle from now on only."""

DONE: Final = """
local group = ARGV[1]
for i = 2, #ARGV, 3 do
  local level, id, task = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key = KEYS[1 + tonumber(level)]
  redis.call('XACK', key, group, id)
  redis.call('XDEL', key, id)
  if redis.call('HGET', KEYS[1], task) == level .. ' ' .. id then
    redis.call('HDEL', KEYS[1], task)
  end
end
"""
"""(level, id, task) triples leave the queue."""

BACKLOG: Final = """
local waiting = 0
for level = 1, #KEYS do
  waiting = waiting + redis.call('XLEN', KEYS[level])
  local held = redis.pcall('XPENDING', KEYS[level], ARGV[1])
  if not held.err then waiting = waiting - held[1] end
end
return waiting
"""

ACQUIRE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local time = redis.call('TIME')
local token = math.max(
  tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0') + 1, time[1] * 1000000 + time[2], tonumber(ARGV[3]))
local text = string.format('%.0f', token)
redis.call('HSET', KEYS[2], ARGV[1], text)
redis.call('SET', KEYS[1], text, 'PX', ARGV[2])
return text
"""
"""KEYS: the lease, the hash of last tokens. ARGV: the lease's name, milliseconds, floor. Microseconds stay below 2^53."""

RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

BIND: Final = """
local bound = redis.call('GET', KEYS[1])
if bound and bound ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""KEYS: whose streams they are. ARGV: the store's identity, milliseconds."""

BEAT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
"""
"""KEYS: the sorted set of instances by the millisecond until which they live; kept for ARGV[3] ms after it."""
