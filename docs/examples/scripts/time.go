// Type 2: the arguments of ping(uint256) at the second that is due. Here: that second with 18 decimals.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"math/big"
	"os"
)

func main() {
	var task struct {
		Time int64 `json:"time"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&task); err != nil {
		log.Fatal(err)
	}
	value := new(big.Int).Mul(big.NewInt(task.Time), new(big.Int).Exp(big.NewInt(10), big.NewInt(18), nil))
	fmt.Printf("[%s]\n", value)
}
