-- For pandoc: tables as wide as a page of 80 columns has room for below a heading.
-- What pandoc gives the columns of a man page adds up to 70 characters, without the gaps.

local room = 0.88

function Table(table)
  for _, column in ipairs(table.colspecs) do
    if column[2] then column[2] = column[2] * room end
  end
  return table
end
