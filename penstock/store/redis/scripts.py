"""Lua scripts: what must be one step at the server.

Redis keeps loaded scripts until it restarts, so each new connection loads them again.
"""

from hashlib import sha1
from typing import Final

from penstock.store.redis.layout import command


class Script:
    """A script and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.sha: Final = sha1(text.encode(), usedforsecurity=False).hexdigest()

    def load(self) -> bytes:
        """Return the command that loads this script."""
        return command("SCRIPT", "LOAD", self.text)

    def call(self, keys: list[str], *arguments: bytes | str | int | float) -> bytes:
        """Return the command that runs this script."""
        return command("EVALSHA", self.sha, len(keys), *keys, *arguments)


GONE = -1
LOST = -2
AGAIN = -3

_LIFE = """
local function life() return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '' end
"""

# If the tenure was forgotten, because it let its lease lapse and owned nothing, it is known again
# with this log, which has everything.
# KEYS: log, open, replicas, lives. ARGV: id, header, tenure, safety.
OPENING = Script(f"""{_LIFE}
redis.call('XADD', KEYS[1], '1-0', 'e', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], 1)
redis.call('PEXPIRE', KEYS[2], ARGV[4])
if redis.call('SADD', KEYS[3], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[4], ARGV[3], life())
end
return '1-0'
""")

# KEYS: log, open. ARGV: id, the entry's id, the entry, retain in ms. The order matters: if this
# owner is fenced, XADD fails, and the log of the new owner stays as it is.
ENDING = Script("""
if not redis.call('XADD', KEYS[1], 'NOMKSTREAM', ARGV[2], 'e', ARGV[3]) then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('HDEL', KEYS[2], ARGV[1])
return ARGV[2]
""")

# Says what the server has of a log that this tenure believes to own: the number of the last entry
# of its epoch; GONE; or LOST, if there is a newer epoch. Entries behind a gap, which errors in the
# middle of a pipeline leave, are removed: nobody has read them (`reading.py`), and the owner writes
# them again in order. A log that has lost the claim of this tenure, and entries before it, too, is
# removed, because ids only rise: its owner writes all of it again.
# KEYS: log, open. ARGV: id, epoch, last acknowledged number, last number if ended, the id of the
# entry before the claim.
SETTLE = Script(f"""
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not top then return {GONE} end
local epoch, last = string.match(top[1], '(%d+)-(%d+)')
local mine, good = tonumber(ARGV[2]), tonumber(ARGV[3])
epoch, last = tonumber(epoch), tonumber(last)
if epoch > mine then return {LOST} end
if epoch < mine then
  last = -1
  if top[1] ~= ARGV[5] then
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[2], ARGV[1], mine)
    return {GONE}
  end
elseif last > good then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], mine .. '-' .. (good + 1), '+')) do
    if tonumber(string.match(entry[1], '-(%d+)')) == good + 1 then
      good = good + 1
    else
      redis.call('XDEL', KEYS[1], entry[1])
    end
  end
  if good < last then redis.call('XSETID', KEYS[1], mine .. '-' .. good) end
  last = good
end
if last < tonumber(ARGV[4]) then redis.call('HSET', KEYS[2], ARGV[1], mine) end
return last
""")

# Writes a log whose key is gone, if this tenure's lease has never lapsed (a tenure is one
# uninterrupted lease) and nobody has claimed the log.
# KEYS: log, open, lease. ARGV: id, epoch, safety, then pairs of id and entry.
REVIVE = Script(f"""
if redis.call('EXISTS', KEYS[3]) == 0 then return {LOST} end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return {LOST} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {AGAIN} end
for i = 4, #ARGV, 2 do redis.call('XADD', KEYS[1], ARGV[i], 'e', ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
""")

# Notes that everything of this tenure's logs is in the store, in its life of now.
# KEYS: lives. ARGV: tenure.
MARK = Script(f"""{_LIFE}
return redis.call('HSET', KEYS[1], ARGV[1], life())
""")

# Moves logs to a new owner and begins their next epochs, which fences the old owners. An old one,
# if it is alive, also finds the log in the set of those taken from it. Returns for each log 1 if
# the new owner has it now, else 0. Repeating it does no harm: a log whose claim was carried out,
# and whose reply was lost, has no later entry.
# If an old owner's mark is of another life, the log may lack its last entries: it is torn. Only
# servers of earlier versions have no mark: a tenure's mark is older than its logs.
# KEYS: replicas, open, lives, logs. ARGV: prefix of open, tenure, safety, prefix of taken, the
# entries of a whole and of a torn log, then id and epoch of each log.
CLAIM = Script(f"""{_LIFE}
local now = life()
local names = redis.call('SMEMBERS', KEYS[1])
local function owner_of(id, epoch)
  for _, name in ipairs(names) do
    if redis.call('HGET', ARGV[1] .. name, id) == epoch then return name end
  end
end
local function claim(key, id, epoch)
  local next = string.format('%d', epoch + 1)
  local owner = owner_of(id, epoch)
  if not owner then
    if redis.call('HGET', KEYS[2], id) ~= next then return 0 end
    local top = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    return top and top[1] == next .. '-0' and 1 or 0
  end
  local top = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if not top then
    redis.call('HDEL', ARGV[1] .. owner, id)
    return 0
  end
  redis.call('HSET', KEYS[2], id, next)
  local mark = redis.call('HGET', KEYS[3], owner)
  local is_whole = not mark or (mark ~= '' and mark == now)
  local entry = is_whole and ARGV[5] or ARGV[6]
  local added = redis.pcall('XADD', key, next .. '-0', 'e', entry, 'after', top[1])
  if type(added) == 'table' then
    redis.call('HDEL', KEYS[2], id)
    return 0
  end
  if ARGV[1] .. owner ~= KEYS[2] then redis.call('HDEL', ARGV[1] .. owner, id) end
  redis.call('SADD', ARGV[4] .. owner, id)
  redis.call('PEXPIRE', ARGV[4] .. owner, 60000)
  return 1
end
if redis.call('SADD', KEYS[1], ARGV[2]) == 1 then redis.call('HSET', KEYS[3], ARGV[2], now) end
local won = {{}}
for i = 4, #KEYS do
  won[#won + 1] = claim(KEYS[i], ARGV[2 * i - 1], ARGV[2 * i])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return won
""")

# Begins a tenure, which takes over what earlier ones own, as far as nobody has claimed it.
# KEYS: replicas, lease, open, lives. ARGV: tenure, lease in ms, its value, safety, prefix of
# leases, prefix of open, the number of earlier tenures, these, then pairs of id and epoch to own.
BEGIN = Script("""
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[4], ARGV[1], '')  -- until it has repaired what it takes over
local first_pair = 8 + ARGV[7]
for i = 8, first_pair - 1 do
  local logs = redis.call('HGETALL', ARGV[6] .. ARGV[i])
  for j = 1, #logs, 2 do redis.call('HSET', KEYS[3], logs[j], logs[j + 1]) end
  redis.call('DEL', ARGV[5] .. ARGV[i], ARGV[6] .. ARGV[i])
  redis.call('SREM', KEYS[1], ARGV[i])
  redis.call('HDEL', KEYS[4], ARGV[i])
end
for i = first_pair, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return 0
""")

# Lists the tenures, each with the number of logs that it left, or -1 if it has its lease.
# KEYS: replicas, lives. ARGV: prefix of leases, prefix of open.
SURVEY = Script("""
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. name) == 1 then
    found[#found + 1] = {name, -1}
  else
    local num = redis.call('HLEN', ARGV[2] .. name)
    if num == 0 then
      redis.call('SREM', KEYS[1], name)
      redis.call('HDEL', KEYS[2], name)
    end
    found[#found + 1] = {name, num}
  end
end
return found
""")

# Publishes a tenure's value with its lease; returns tenures and their values.
# KEYS: replicas, lease. ARGV: prefix of leases, lease in ms, value.
EXCHANGE = Script("""
redis.call('SET', KEYS[2], ARGV[3], 'XX', 'PX', ARGV[2])
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local value = redis.call('GET', ARGV[1] .. name)
  if value then
    found[#found + 1] = name
    found[#found + 1] = value
  end
end
return found
""")

# Says that a replica follows logs. KEYS: the sets of readers. ARGV: replica, how long in ms.
FOLLOW = Script("""
local now = redis.call('TIME')
local until_ms = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, string.format('%d', until_ms), ARGV[1])
  redis.call('PEXPIRE', key, ARGV[2])
end
return 0
""")

# KEYS: a set of readers. ARGV: replica.
IS_FOLLOWED = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local after = '(' .. string.format('%d', now_ms)
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], after, '+inf')) do
  if name ~= ARGV[1] then return 1 end
end
return 0
""")

# Carries out every command of the scripts and of this store's calls once. So a user who may not do
# that is told at the start, and not in the middle of a stream. Whatever fails, the key ends.
# KEYS: a key that nobody uses.
TRIAL = Script("""
local key, failed = KEYS[1], nil
local function try(name, ...)
  local reply = redis.pcall(name, key, ...)
  if type(reply) == 'table' and reply.err then failed = failed or reply end
end
local function try_without_key(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then failed = failed or reply end
end
try('XADD', '1-0', 'e', '')
try_without_key('XREAD', 'COUNT', 1, 'STREAMS', key, '0')
try('XRANGE', '-', '+')
try('XREVRANGE', '+', '-')
try('XDEL', '1-0')
try('XSETID', '2-0')
try('DEL')
try('HSET', 'a', 1)
try('HGET', 'a')
try('HLEN')
try('HGETALL')
try('HDEL', 'a')
try('SADD', 'a')
try('SMEMBERS')
try('SREM', 'a')
try('SPOP')
try('ZADD', 1, 'a')
try('ZRANGEBYSCORE', 0, 1)
try('ZREM', 'a')
try('EXISTS')
try('GET')
try('PEXPIRE', 1)
try('UNLINK')
try('SET', 1, 'PX', 1)
try_without_key('TIME')
try_without_key('INFO', 'server')
return failed or 1
""")

OF_THE_LINE = (OPENING, ENDING, SETTLE, REVIVE, BEGIN, MARK)
"""The scripts that the owning side calls on its own connection."""
