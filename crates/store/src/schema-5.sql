-- What environments are kept from is part of their documents. A version that does not know it would let it go: it must refuse this file.
UPDATE environments SET document = json_insert(document, '$.held', json('{"mail":false,"jobs":false}'));
