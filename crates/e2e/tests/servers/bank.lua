-- sysbench's own oltp_read_write, and before each of its transactions a transfer between two accounts that is written down
-- twice: in the balances and in a list. Ends when /tmp/stop exists, and says how many transfers were committed.
dofile("/usr/share/sysbench/oltp_read_write.lua")

local ACCOUNTS = 50
local stock = {prepare = prepare, thread_init = thread_init, thread_done = thread_done, event = event}
local committed = 0

local function bank_prepare()
   cmd_prepare()
   local con = sysbench.sql.driver():connect()
   con:query("CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL) ENGINE=InnoDB")
   con:query("CREATE TABLE transfer (id INT AUTO_INCREMENT PRIMARY KEY, source INT, target INT, amount INT, " ..
             "KEY (source), KEY (target)) ENGINE=InnoDB")
   for id = 1, ACCOUNTS do
      con:query("INSERT INTO account VALUES (" .. id .. ", 1000)")
   end
end
sysbench.cmdline.commands.prepare = {bank_prepare}

function event()
   local source, target, amount = sysbench.rand.uniform(1, ACCOUNTS), sysbench.rand.uniform(1, ACCOUNTS), sysbench.rand.uniform(1, 9)
   con:query("BEGIN")
   con:query(string.format("UPDATE account SET balance = balance - %d WHERE id = %d", amount, source))
   con:query(string.format("UPDATE account SET balance = balance + %d WHERE id = %d", amount, target))
   con:query(string.format("INSERT INTO transfer (source, target, amount) VALUES (%d, %d, %d)", source, target, amount))
   con:query("COMMIT")
   committed = committed + 1
   stock.event()
   local stop = io.open("/tmp/stop")
   if stop then stop:close() end
   return stop ~= nil
end

function thread_done()
   stock.thread_done()
   print("committed transfers: " .. committed)
end
