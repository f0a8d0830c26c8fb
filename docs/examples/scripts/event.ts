// Type 4: the arguments of ping(uint256) for an event. Here: the first word of its data, in full.
import { readFileSync } from "fs";

interface Event {
  address: string;
  topics: string[];
  data: string;
  transaction_hash: string;
  position: number;
}

const event: Event = JSON.parse(readFileSync(0, "utf8")).event;

console.log(JSON.stringify([BigInt(event.data.slice(0, 66)).toString()]));
