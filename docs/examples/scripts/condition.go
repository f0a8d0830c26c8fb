// Type 6: the arguments of ping(uint256) when a condition came true. Here: how often it has.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("[%s]\n", os.Getenv("TRIGGERX_TRIGGER_ID"))
}
